//! Whole flows of vectors of nflows, zuko, normflows and sbi, read by their names.

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use burn_flows::conditioner::Activation;
use burn_flows::context::{Embedded, Given};
use burn_flows::prior::Prior;
use burn_flows::weights::normflows::{self, RealNvpOptions, SplineFlowOptions};
use burn_flows::weights::{Embedding, nflows, zuko};
use burn_flows::{Flow, FlowStack};

use super::cases::{text, written_back};
use super::{Computed, Golden, INVERSE, values};

/// What the class of such a file begins with; the library follows.
pub const CLASS: &str = "flow of vectors of ";

pub fn case(golden: &Golden) -> Result<Computed, String> {
    let params = golden.params();
    let library = golden.meta("class").strip_prefix(CLASS).unwrap_or_default();
    match library {
        "nflows" => {
            let options = nflows_options(golden)?;
            let model = nflows::model(&params, &options).map_err(text)?;
            written_back(golden, &params, Ok(nflows::weights(&model, &options)))?;
            compute(golden, given(golden, &model)?)
        }
        "sbi nflows" => {
            let options = nflows_options(golden)?;
            let model = nflows::estimator(&params, &options).map_err(text)?;
            let written = nflows::estimator_weights(&model, &options);
            written_back(golden, &params, Ok(written.map(|written| written.below("net"))))?;
            estimated(golden, &model)
        }
        "zuko" => {
            let options = zuko_options(golden)?;
            let model = zuko::model(&params, &options).map_err(text)?;
            written_back(golden, &params, Ok(zuko::weights(&model, &options)))?;
            compute(golden, given(golden, &model)?)
        }
        "sbi zuko" => {
            let options = zuko_options(golden)?;
            let model = zuko::estimator(&params, &options).map_err(text)?;
            written_back(golden, &params, Ok(zuko::estimator_weights(&model, &options)))?;
            estimated(golden, &model)
        }
        "normflows" => {
            let options = SplineFlowOptions::default();
            let model = normflows::spline_flow(&params, &options).map_err(text)?;
            written_back(golden, &params, Ok(normflows::spline_flow_weights(&model, &options)))?;
            compute(golden, given(golden, &model)?)
        }
        "normflows classes" => {
            let options = RealNvpOptions::default();
            let model = normflows::class_real_nvp(&params, &options).map_err(text)?;
            written_back(golden, &params, Ok(normflows::class_real_nvp_weights(&model)))?;
            compute(golden, given(golden, &model)?)
        }
        other => Err(format!("unknown library {other:?}")),
    }
}

fn option(golden: &Golden, key: &str) -> Result<Option<String>, String> {
    Ok(golden.hyper("options")?[key].as_str().map(str::to_string))
}

fn nflows_options(golden: &Golden) -> Result<nflows::Options, String> {
    match option(golden, "defaults")?.as_deref() {
        None => Ok(nflows::Options::default()),
        Some("sbi_maf") => Ok(nflows::Options::sbi_maf()),
        Some("sbi_nsf") => Ok(nflows::Options::sbi_nsf()),
        Some(other) => Err(format!("unknown defaults {other:?}")),
    }
}

fn zuko_options(golden: &Golden) -> Result<zuko::Options, String> {
    let activation = match option(golden, "activation")?.as_deref() {
        None => Activation::Relu,
        Some("elu") => Activation::Elu,
        Some(other) => return Err(format!("unknown activation {other:?}")),
    };
    Ok(zuko::Options { activation, ..zuko::Options::default() })
}

fn context(golden: &Golden) -> Result<Option<Tensor<2>>, String> {
    golden.array("context").is_ok().then(|| golden.tensor("context")).transpose()
}

fn given<M: Module>(golden: &Golden, model: &M) -> Result<M, String> {
    match context(golden)? {
        Some(context) => model.given(&context).map_err(text),
        None => Ok(model.clone()),
    }
}

fn estimated<M>(golden: &Golden, model: &Embedded<Embedding, M>) -> Result<Computed, String>
where
    M: Module + Density,
{
    let context = context(golden)?.ok_or("the file holds no context")?;
    compute(golden, model.given(&context).map_err(text)?)
}

/// What the models of all libraries can do.
trait Density: Flow<2> {
    fn log_prob(&self, x: Tensor<2>) -> Tensor<1>;
}

impl<F: Flow<2>, P: Prior<2>> Density for FlowStack<2, F, P>
where
    Self: Flow<2>,
{
    fn log_prob(&self, x: Tensor<2>) -> Tensor<1> {
        FlowStack::log_prob(self, x)
    }
}

fn compute(golden: &Golden, model: impl Density) -> Result<Computed, String> {
    let x: Tensor<2> = golden.tensor("x")?;
    let mut computed = Computed::default();
    let (z, log_det) = model.forward(x.clone());
    computed.set("log_det_jacobian_0", log_det.clone().narrow(0, 0, 1));
    computed.set("log_det", log_det);
    computed.set("log_prob", model.log_prob(x));
    let again = model.forward(model.inverse(golden.tensor("z")?)).0;
    computed.compare("z again", values(again), golden.array("z")?.values().to_vec());
    if golden.weights.dtype() == DType::F64 {
        let back = values(model.inverse(z.clone()));
        computed.compare(INVERSE, back, golden.array("x")?.values().to_vec());
    }
    computed.set("z", z);
    Ok(computed)
}
