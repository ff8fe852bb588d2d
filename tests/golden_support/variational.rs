//! Planar, radial and residual flows of normflows, and the reverse KL divergence of fixed draws.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use burn_flows::conditioner::Mlp;
use burn_flows::prior::{DiagonalNormal, Prior};
use burn_flows::residual::{Planar, PlanarActivation, Radial, Residual, ResidualConfig};
use burn_flows::variational::{LogWeights, ReverseKl};
use burn_flows::weights::Weights;
use burn_flows::weights::normflows::{self, MaskedScale, VectorStep};
use burn_flows::{Flow, FlowStack};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::cases::{in_order, stack, text};
use super::{Computed, Golden, INVERSE, cast, values};

/// The case for a class, if it is one of these.
pub fn case(golden: &Golden) -> Option<Result<Computed, String>> {
    if golden.meta("class") != "NormalizingFlow" {
        return None;
    }
    let known = |layer: &Value| {
        let class = layer["class"].as_str();
        class.is_some_and(|class| ["Planar", "Radial", "Residual"].contains(&class))
    };
    let layers = golden.hyper("layers").ok()?;
    let is_target = golden.hyper("target").is_ok();
    let is_known = layers.as_array().is_some_and(|layers| layers.iter().all(known));
    if is_target {
        return Some(of_normflows(golden));
    }
    is_known.then(|| density(golden))
}

#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
enum Layer {
    Planar(Planar),
    Radial(Radial),
    Residual(Residual),
    Masked(VectorStep),
}

/// Layers in the order from data to latent: the reverse of the file's.
fn layers(golden: &Golden) -> Result<Vec<Layer>, String> {
    let layers = golden.hyper("layers")?;
    let layers = layers.as_array().ok_or("layers is not a list")?;
    let params = golden.params().under("flows");
    let layers = layers.iter().enumerate().map(|(k, layer)| {
        let params = params.under(k.to_string());
        match layer["class"].as_str() {
            Some("Planar") => planar(golden, layer, &params).map(Layer::Planar),
            Some("Radial") => radial(golden, &params).map(Layer::Radial),
            Some("Residual") => residual(golden, layer, &params).map(Layer::Residual),
            Some("MaskedAffineFlow") => masked(golden, &params).map(Layer::Masked),
            other => Err(format!("unknown layer {other:?}")),
        }
    });
    let mut layers = layers.collect::<Result<Vec<_>, _>>()?;
    layers.reverse();
    Ok(layers)
}

/// Any start: all of its parameters are replaced.
fn start() -> StdRng {
    StdRng::seed_from_u64(0)
}

fn vector(golden: &Golden, params: &Weights, name: &str) -> Result<Param<Tensor<1>>, String> {
    let array = params.array(name).map_err(text)?.flat();
    Ok(Param::from_tensor(golden.tensor_of(&array)))
}

fn planar(golden: &Golden, layer: &Value, params: &Weights) -> Result<Planar, String> {
    let activation = match layer["act"].as_str() {
        Some("tanh") => PlanarActivation::Tanh,
        Some("leaky_relu") => PlanarActivation::LeakyRelu { slope: 0.2 },
        other => return Err(format!("unknown act {other:?}")),
    };
    let direction = vector(golden, params, "u")?;
    let device = golden.weights.device();
    let mut planar =
        Planar::new(direction.dims()[0], activation, &mut start(), device).map_err(text)?;
    planar.direction = direction;
    planar.normal = vector(golden, params, "w")?;
    planar.bias = vector(golden, params, "b")?;
    Ok(planar)
}

fn radial(golden: &Golden, params: &Weights) -> Result<Radial, String> {
    let center = vector(golden, params, "z_0")?;
    let device = golden.weights.device();
    let mut radial = Radial::new(center.dims()[0], &mut start(), device).map_err(text)?;
    radial.center = center;
    let alpha = params.array("alpha").map_err(text)?.flat();
    radial.log_alpha = Param::from_tensor(golden.tensor_of(&alpha.map(|alpha| alpha.abs().ln())));
    radial.beta = vector(golden, params, "beta")?;
    Ok(radial)
}

/// How far above the file's bound the norms of the file's matrices may be: their vectors are those of a
/// training, not of the last digit.
const NORM_SLACK: f64 = 1e-5;

fn residual(golden: &Golden, layer: &Value, params: &Weights) -> Result<Residual, String> {
    let sizes: Vec<usize> =
        serde_json::from_value(layer["channels"].clone()).map_err(|error| error.to_string())?;
    let bound = layer["lipschitz_const"].as_f64().ok_or("lipschitz_const is not a number")?;
    let [features, hidden @ .., _] = &sizes[..] else {
        return Err("channels has fewer than two sizes".into());
    };
    let config = ResidualConfig::new(*features, hidden.to_vec());
    let config = config.with_coefficient(bound * (1.0 + NORM_SLACK));
    let mut residual =
        cast(config.init(golden.weights.device()).map_err(text)?, golden.weights.dtype());
    let net = params.under("iresblock.nnet.net");
    for (index, layer) in residual.layers.iter_mut().enumerate() {
        // The matrix as that library uses it.
        let linear = net.under((2 * index + 1).to_string());
        let array = |name: &str| linear.array(name).map_err(text);
        let (weight, u, v) = (array("weight")?, array("u")?, array("v")?);
        let rows = weight.values().chunks(v.values().len()).zip(u.values());
        let sigma: f64 = rows
            .map(|(row, u)| u * row.iter().zip(v.values()).map(|(w, v)| w * v).sum::<f64>())
            .sum();
        let factor = (sigma / bound).max(1.0);
        let weight = weight.map(|value| value / factor).transposed();
        layer.weight = Param::from_tensor(golden.tensor_of(&weight));
        layer.bias = Some(vector(golden, &linear, "bias")?);
        let swish = net.under((2 * index).to_string());
        residual.betas[index] = vector(golden, &swish, "beta")?;
    }
    Ok(residual)
}

fn masked(golden: &Golden, params: &Weights) -> Result<VectorStep, String> {
    let scale = match golden.meta("formula").contains("tanh at the end of s") {
        true => MaskedScale::Tanh,
        false => MaskedScale::Linear,
    };
    normflows::masked_affine(params, scale).map_err(text)
}

fn base(golden: &Golden) -> Result<DiagonalNormal<2>, String> {
    let base = golden.hyper("base")?;
    if base["class"] != "DiagGaussian" {
        return Err(format!("unknown base {base}"));
    }
    Ok(DiagonalNormal {
        mean: Param::from_tensor(golden.tensor("param.q0.loc")?),
        log_std: Param::from_tensor(golden.tensor("param.q0.log_scale")?),
    })
}

fn density(golden: &Golden) -> Result<Computed, String> {
    let features = golden.number("features")? as usize;
    let mut computed = stack(
        golden,
        FlowStack::single(layers(golden)?, base(golden)?, &[features]),
        in_order::<2>,
    )?;
    let x: Tensor<2> = golden.tensor("x")?;
    let z: Tensor<2> = golden.tensor("z")?;
    let flow = layers(golden)?;
    let (back, log_det) = flow.inverse_and_log_det(z.clone());
    computed.compare("drawn x", values(back.clone()), values(x));
    computed.compare("drawn log_det", values(log_det), golden.array("log_det")?.values().to_vec());
    computed.compare("drawn z", values(flow.forward(back).0), values(z));
    Ok(computed)
}

/// A learned normal whose draws are made of given noise.
#[derive(Module, Debug)]
pub struct GivenNoise {
    normal: DiagonalNormal<2>,
    noise: Param<Tensor<2>>,
}

impl Prior<2> for GivenNoise {
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        self.normal.log_prob(z)
    }

    fn sample(
        &self,
        _shape: [usize; 2],
        temperature: f64,
        _rng: &mut impl Rng,
        _device: &Device,
        _dtype: DType,
    ) -> Tensor<2> {
        let noise = self.noise.val() * temperature;
        noise * self.normal.log_std.val().exp() + self.normal.mean.val()
    }
}

/// `ln p` of a file's target.
fn target(golden: &Golden) -> Result<fn(Tensor<2>) -> Tensor<1>, String> {
    fn column(x: &Tensor<2>, at: usize) -> Tensor<1> {
        x.clone().narrow(1, at, 1).squeeze_dim::<1>(1)
    }
    match golden.text("target")?.as_str() {
        "two_moons" => Ok(|x: Tensor<2>| {
            let size = column(&x, 0).abs();
            let radius = x.square().sum_dim(1).sqrt().squeeze_dim::<1>(1);
            let ring = ((radius - 2.0) * 0.2f64.recip()).square() * -0.5;
            // Not divided: Burn has the gradient of that in f32.
            let sides = ((size.clone() - 2.0) * 0.3f64.recip()).square() * -0.5;
            ring + sides + (size * (-4.0 / 0.09)).exp().log1p()
        }),
        "ring" => Ok(|x: Tensor<2>| {
            let radius = (x.clone().square().sum_dim(1) + 1e-12).sqrt().squeeze_dim::<1>(1);
            ((radius - 2.0) * 2.5).square() * -0.5 - column(&x, 0) * 0.3
        }),
        "banana" => Ok(|x: Tensor<2>| {
            let others = x.dims()[1] - 1;
            let first = x.clone().narrow(1, 0, 1);
            let bend = (first.clone().square() - 1.0) * 0.5;
            let off = (x.narrow(1, 1, others) - bend) * 0.6f64.recip();
            let squares = (first * 1.5f64.recip()).square() + off.square().sum_dim(1);
            squares.squeeze_dim::<1>(1) * -0.5
        }),
        other => Err(format!("unknown target {other:?}")),
    }
}

fn of_normflows(golden: &Golden) -> Result<Computed, String> {
    reverse_kl(golden, layers(golden)?, base(golden)?, named_gradients)
}

/// A flow whose draws are fitted to a file's target.
pub type Fitted<F> = FlowStack<2, F, GivenNoise>;

/// The reverse KL divergence of a file's draws and its gradients, which `named` finds and gives the names
/// of the file.
pub fn reverse_kl<F: Flow<2>>(
    golden: &Golden,
    flow: F,
    normal: DiagonalNormal<2>,
    named: impl Fn(&Fitted<F>, &GradientsParams) -> Result<Vec<(String, Vec<f64>)>, String>,
) -> Result<Computed, String>
where
    Fitted<F>: Module,
{
    let noise: Tensor<2> = golden.tensor("noise")?;
    let [draws, features] = noise.dims();
    let noise = Param::from_tensor(noise).set_require_grad(false);
    let prior = GivenNoise { normal, noise };
    let model = Fitted::single(flow, prior, &[features]).map_err(text)?;
    let log_p = target(golden)?;

    let mut computed = Computed::default();
    let (x, log_q) = model.sample_and_log_prob_with(draws, &mut start());
    let (device, dtype) = (golden.weights.device(), golden.weights.dtype());
    let z = model.prior.sample([draws, features], 1.0, &mut start(), device, dtype);
    let (_, log_det) = model.levels[0].inverse_and_log_det(z.clone());
    let log_w = log_p(x.clone()) - log_q.clone();
    let weights = LogWeights::from_tensor(log_w).map_err(text)?;
    computed.compare("drawn x", values(x.clone()), golden.array("x")?.values().to_vec());
    computed.compare(INVERSE, values(model.levels[0].forward(x.clone()).0), values(z.clone()));
    computed.set("z", z);
    computed.set("log_q", log_q);
    computed.set("log_p", log_p(x));
    computed.set("log_det_jacobian_0", log_det.clone().narrow(0, 0, 1));
    computed.set("log_det", log_det);
    for (name, value) in
        [("ess", weights.effective_sample_size()), ("log_evidence", weights.log_evidence())]
    {
        computed.values.insert(name.into(), vec![value]);
    }
    computed.values.insert("log_w".into(), weights.values().to_vec());

    let training = model.train();
    for (path, prefix) in [(false, "grad."), (true, "grad_path.")] {
        let objective = ReverseKl::new(draws).with_path_gradient(path);
        for reversible in [false, true] {
            let objective = objective.with_reversible(reversible);
            let step = objective.gradients(&training, log_p, &mut start()).map_err(text)?;
            computed.values.insert("loss".into(), vec![step.loss]);
            for (name, gradient) in named(&training, &step.grads)? {
                let name = format!("{prefix}{name}");
                // The file of a flow without a way back has no gradients along the path.
                let Ok(expected) = golden.array(&name) else { continue };
                if reversible {
                    let name = format!("reversible {name}");
                    computed.compare(&name, gradient, expected.values().to_vec());
                } else {
                    computed.values.insert(name, gradient);
                }
            }
        }
    }
    Ok(computed)
}

/// The gradients under the names of the library, in its order and with its signs.
fn named_gradients(
    model: &Fitted<Vec<Layer>>,
    grads: &GradientsParams,
) -> Result<Vec<(String, Vec<f64>)>, String> {
    fn of<const N: usize>(grads: &GradientsParams, param: &Param<Tensor<N>>) -> Tensor<N> {
        grads.get::<N>(param.id).unwrap_or_else(|| param.val().inner().zeros_like())
    }
    let normal = &model.prior.normal;
    let mut named = vec![
        ("q0.loc".to_string(), values(of(grads, &normal.mean))),
        ("q0.log_scale".to_string(), values(of(grads, &normal.log_std))),
    ];
    for (k, layer) in model.levels[0].iter().rev().enumerate() {
        match layer {
            Layer::Planar(planar) => {
                let parts = [("u", &planar.direction), ("w", &planar.normal), ("b", &planar.bias)];
                for (name, param) in parts {
                    named.push((format!("flows.{k}.{name}"), values(of(grads, param))));
                }
            }
            Layer::Masked(VectorStep::Masked(coupling)) => {
                let mut net = |name: &str, mlp: &Mlp, last_sign: f64| {
                    for (index, layer) in mlp.layers.iter().enumerate() {
                        let sign = if index + 1 == mlp.layers.len() { last_sign } else { 1.0 };
                        let path = format!("flows.{k}.{name}.net.{}", 2 * index);
                        let weight = of(grads, &layer.weight).transpose() * sign;
                        named.push((format!("{path}.weight"), values(weight)));
                        let bias = layer.bias.as_ref().map(|bias| of(grads, bias) * sign);
                        named.extend(bias.map(|bias| (format!("{path}.bias"), values(bias))));
                    }
                };
                // What is subtracted there is added here.
                net("t", &coupling.conditioner.shift, -1.0);
                let is_tanh =
                    coupling.transform.scale_map() == burn_flows::coupling::ScaleMap::Tanh;
                net("s", &coupling.conditioner.scale, if is_tanh { 1.0 } else { -1.0 });
            }
            other => return Err(format!("no names for the gradients of {other:?}")),
        }
    }
    Ok(named)
}
