//! Flows of vectors of nflows, zuko, normflows and sbi: from their files, through training and back, and
//! files that are not right.

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flows::conditioner::Activation;
use burn_flows::linear::LuLinear;
use burn_flows::prior::StandardNormal;
use burn_flows::training::{Batch, Trainable};
use burn_flows::weights::{Weights, chrischute, nflows, normflows, rosinality, torch, y0ast, zuko};
use burn_flows::{FlowError, FlowStack};

use super::{device, folder, golden, tensors};

/// The samples of a golden file and their contexts.
fn with_context(file: &str, dtype: DType) -> (Tensor<2>, Tensor<2>) {
    let path = folder(&format!("{file}.safetensors"));
    let all = Weights::read(path, &device()).unwrap();
    let part = |name: &str| {
        let array = all.array(name).unwrap();
        let data = TensorData::new(array.values().to_vec(), array.shape().to_vec());
        Tensor::from_data(data, (&device(), dtype))
    };
    (part("x"), part("context"))
}

/// [`round_trip`](super::round_trip) of a flow of vectors.
fn round_trip<B: Batch, M: Module + Trainable<B>>(
    file: &str,
    dtype: DType,
    batch: impl Fn(&str, DType) -> B,
    read: impl Fn(&Weights) -> Result<M, FlowError>,
    write: impl Fn(&M) -> Weights,
) {
    let file = format!("golden-libraries/{file}");
    super::round_trip(&file, &batch(&file, dtype), dtype, read, write, |_| Vec::new());
}

fn alone(file: &str, dtype: DType) -> Tensor<2> {
    golden::<2>(file, dtype).1
}

/// In f64, which the libraries then agree with to 1e-10, and in f32.
macro_rules! exports {
    ($($file:ident: $batch:expr, $read:expr, $write:expr;)+) => {
        mod exports {
            use super::*;
            $(
                #[test]
                fn $file() {
                    for dtype in [DType::F64, DType::F32] {
                        round_trip(stringify!($file), dtype, $batch, $read, $write);
                    }
                }
            )+
        }
    };
}

fn elu() -> zuko::Options {
    zuko::Options { activation: Activation::Elu, ..Default::default() }
}

fn of_sbi(estimator: &nflows::Estimator, options: &nflows::Options) -> Weights {
    nflows::estimator_weights(estimator, options).unwrap().below("net")
}

exports! {
    nflows_maf_residual: alone, |w| nflows::model(w, &Default::default()), |m| nflows::weights(m, &Default::default()).unwrap();
    nflows_maf_random: alone, |w| nflows::model(w, &Default::default()), |m| nflows::weights(m, &Default::default()).unwrap();
    nflows_affine_couplings: with_context, |w| nflows::model(w, &Default::default()), |m| nflows::weights(m, &Default::default()).unwrap();
    nflows_spline_couplings: alone, |w| nflows::model(w, &Default::default()), |m| nflows::weights(m, &Default::default()).unwrap();
    nflows_spline_unit: alone, |w| nflows::model(w, &Default::default()), |m| nflows::weights(m, &Default::default()).unwrap();
    sbi_maf: with_context, |w| nflows::estimator(w, &nflows::Options::sbi_maf()), |m| of_sbi(m, &nflows::Options::sbi_maf());
    sbi_maf_rqs: with_context, |w| nflows::estimator(w, &nflows::Options::sbi_maf()), |m| of_sbi(m, &nflows::Options::sbi_maf());
    sbi_nsf: with_context, |w| nflows::estimator(w, &nflows::Options::sbi_nsf()), |m| of_sbi(m, &nflows::Options::sbi_nsf());
    sbi_nsf_embedding: with_context, |w| nflows::estimator(w, &nflows::Options::sbi_nsf()), |m| of_sbi(m, &nflows::Options::sbi_nsf());
    sbi_nsf_one_feature: with_context, |w| nflows::estimator(w, &nflows::Options::sbi_nsf()), |m| of_sbi(m, &nflows::Options::sbi_nsf());
    sbi_zuko_maf: with_context, |w| zuko::estimator(w, &Default::default()), |m| zuko::estimator_weights(m, &Default::default()).unwrap();
    sbi_zuko_nsf: with_context, |w| zuko::estimator(w, &Default::default()), |m| zuko::estimator_weights(m, &Default::default()).unwrap();
    zuko_maf_random: alone, |w| zuko::model(w, &Default::default()), |m| zuko::weights(m, &Default::default()).unwrap();
    zuko_maf_narrow: alone, |w| zuko::model(w, &Default::default()), |m| zuko::weights(m, &Default::default()).unwrap();
    zuko_nsf_residual: with_context, |w| zuko::model(w, &elu()), |m| zuko::weights(m, &elu()).unwrap();
    zuko_nsf_coupling: alone, |w| zuko::model(w, &Default::default()), |m| zuko::weights(m, &Default::default()).unwrap();
    zuko_ncsf_circle: with_context, |w| zuko::model(w, &Default::default()), |m| zuko::weights(m, &Default::default()).unwrap();
    normflows_rqs_coupled: alone, |w| normflows::spline_flow(w, &Default::default()), |m| normflows::spline_flow_weights(m, &Default::default()).unwrap();
    normflows_rqs_autoregressive: alone, |w| normflows::spline_flow(w, &Default::default()), |m| normflows::spline_flow_weights(m, &Default::default()).unwrap();
    normflows_conditional: with_context, |w| normflows::spline_flow(w, &Default::default()), |m| normflows::spline_flow_weights(m, &Default::default()).unwrap();
    normflows_classes: with_context, |w| normflows::class_real_nvp(w, &Default::default()), |m| normflows::class_real_nvp_weights(m).unwrap();
}

/// What is written for another library is what it reads: another floor is another function there.
#[test]
fn what_the_library_has_not_is_not_written() {
    let mut linear = LuLinear::new(3, 0.5, &device()).unwrap();
    linear.raw_diagonal = linear.raw_diagonal.map(|raw| raw - 2.0);
    let layers = vec![nflows::Layer::Linear(linear)];
    let base = nflows::Base::Standard(StandardNormal::new());
    let model: nflows::Model = FlowStack::single(layers, base, &[3]).unwrap();
    let error = nflows::weights(&model, &Default::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "weights for flows.Flow of nflows: got a model with a layer, a setting or a shape that its file cannot \
         tell, needs one that reads back as it is, with the same options; export a model that was read from \
         there, or save it as a record"
    );
    let (params, _) = golden::<2>("golden-libraries/nflows_maf_residual", DType::F32);
    let tanh =
        nflows::Options { masked_activation: Activation::Tanh, ..nflows::Options::default() };
    let model = nflows::model(&params, &tanh).unwrap();
    assert!(nflows::weights(&model, &nflows::Options::default()).is_err(), "of another activation");
    nflows::weights(&model, &tanh).unwrap();
}

/// What reads the models of a file, if it is read.
type Reader = fn(&Weights) -> Result<(), FlowError>;

/// Files, and the reader of their library; each library once or more.
const READERS: [(&str, Reader); 15] = [
    ("golden-libraries/nflows_maf_random", |w| nflows::model(w, &Default::default()).map(|_| ())),
    ("golden-libraries/sbi_nsf", |w| nflows::estimator(w, &nflows::Options::sbi_nsf()).map(|_| ())),
    ("golden-libraries/sbi_nsf_one_feature", |w| {
        nflows::estimator(w, &nflows::Options::sbi_nsf()).map(|_| ())
    }),
    ("golden-libraries/zuko_nsf_residual", |w| zuko::model(w, &elu()).map(|_| ())),
    ("golden-libraries/sbi_zuko_nsf", |w| zuko::estimator(w, &Default::default()).map(|_| ())),
    ("golden-libraries/normflows_conditional", |w| {
        normflows::spline_flow(w, &Default::default()).map(|_| ())
    }),
    ("golden-libraries/normflows_rqs_autoregressive", |w| {
        normflows::spline_flow(w, &Default::default()).map(|_| ())
    }),
    ("golden-libraries/normflows_classes", |w| {
        normflows::class_real_nvp(w, &Default::default()).map(|_| ())
    }),
    ("golden/nf_masked_affine_2d", |w| normflows::real_nvp(w, &Default::default()).map(|_| ())),
    ("golden/nf_multiscale_glow_l2k2", |w| normflows::glow(w, Some([8, 8])).map(|_| ())),
    ("golden-general/nf_glow_class_cond", |w| normflows::class_glow(w, None).map(|_| ())),
    ("golden-libraries/rosinality_one_block", |w| rosinality::model(w, [8, 12]).map(|_| ())),
    ("golden-libraries/y0ast_additive", |w| y0ast::model(w, &y0ast::Mixing::Conv1x1).map(|_| ())),
    ("golden-libraries/chrischute_realnvp_s1", |w| chrischute::model(w, [6, 10]).map(|_| ())),
    ("golden/nice_logistic_d8", |w| torch::nice(w).map(|_| ())),
];

fn of(tensors: Vec<(String, TensorData)>) -> Weights {
    Weights::new(tensors, &device())
}

/// Whatever tensor is missing, is of another shape, has a value that is not finite, or has no values and
/// announces many: an error that names it, and no panic.
#[test]
fn whatever_is_wrong_with_a_tensor_is_an_error() {
    for (name, read) in READERS {
        let all = tensors(name);
        read(&of(all.clone())).unwrap_or_else(|error| panic!("{name}: {error}"));
        for at in 0..all.len() {
            let (tensor, data) = &all[at];
            // A file need not hold these (an order follows from the masks), nor what has nothing in it.
            let may_lack = ["data_dep_init_done", ".order"];
            if may_lack.iter().any(|end| tensor.ends_with(end)) || data.num_elements() == 0 {
                continue;
            }
            let (shape, count) = (data.shape().to_vec(), data.num_elements());
            let refused = |data: Option<TensorData>| {
                let mut all = all.clone();
                match data {
                    Some(data) => all[at].1 = data,
                    None => drop(all.remove(at)),
                }
                let error = read(&of(all)).err();
                let message = error.map(|error| error.to_string());
                let message = message.unwrap_or_else(|| panic!("{name}: {tensor} is not missed"));
                // Without what all models have, it is none.
                let says = [" in it", "tensors of", "is no net from"];
                assert!(says.iter().any(|part| message.contains(part)), "{message}");
            };
            refused(None);
            let mut values: Vec<f64> = data.iter().collect();
            values.push(0.5);
            refused(Some(TensorData::new(values, [count + 1])));
            for large in [[0, 1 << 20, 1 << 20], [1 << 20, 1 << 20, 0]] {
                let large = &large[..shape.len().clamp(1, 3)];
                if large.contains(&0) {
                    refused(Some(TensorData::new(Vec::<f64>::new(), large)));
                }
            }
            if count > 0 {
                let mut values: Vec<f64> = data.iter().collect();
                values[0] = f64::NAN;
                refused(Some(TensorData::new(values, shape)));
            }
        }
        let mut more = all.clone();
        more.push((all[0].0.clone() + ".extra", TensorData::from([1.0f64])));
        let message = read(&of(more)).unwrap_err().to_string();
        assert!(message.contains("not of the model: ") && message.contains(".extra"), "{message}");
    }
}

#[test]
fn another_architecture_is_refused() {
    for (name, read) in READERS {
        let is_of_library = |other: &str| {
            // Readers of one library and kind read each other's files.
            let kind = |name: &str| match name.rsplit('/').next().unwrap() {
                "sbi_nsf" | "sbi_nsf_one_feature" => "sbi",
                "normflows_conditional" | "normflows_rqs_autoregressive" => "normflows splines",
                _ => "other",
            };
            other == name || kind(other) != "other" && kind(other) == kind(name)
        };
        for (other, _) in READERS.iter().filter(|(other, _)| !is_of_library(other)) {
            assert!(read(&of(tensors(other))).is_err(), "{name} is read of {other}");
        }
    }
}

/// Masks that let two features depend on each other are those of no autoregressive layer.
#[test]
fn masks_without_an_order_are_refused() {
    for name in ["nflows_maf_residual", "zuko_maf_random"] {
        let mut all = tensors(&format!("golden-libraries/{name}"));
        for (_, data) in all.iter_mut().filter(|(name, _)| name.ends_with("mask")) {
            *data = TensorData::new(vec![1.0; data.num_elements()], data.shape().clone());
        }
        let is_reader = |file: &str| file.rsplit('/').next().unwrap()[..4] == name[..4];
        let (_, read) = READERS.into_iter().find(|(file, _)| is_reader(file)).unwrap();
        let message = read(&of(all)).unwrap_err().to_string();
        assert!(message.contains("the masks "), "{message}");
    }
}

/// An estimator is told from a flow without an embedding net.
#[test]
fn an_embedding_is_not_dropped() {
    let weights = of(tensors("golden-libraries/sbi_nsf"));
    let message = nflows::model(&weights, &nflows::Options::sbi_nsf()).unwrap_err().to_string();
    assert!(message.contains("2 not of the model: _embedding_net.0._mean"), "{message}");
    let alone = of(tensors("golden-libraries/nflows_maf_residual"));
    let message = nflows::estimator(&alone, &Default::default()).unwrap_err().to_string();
    assert!(message.contains("a flow that takes no context"), "{message}");
}
