//! The fused passes against direct loops, finite differences and each other.

use super::conditioner::{Conditioner, Pass};
use super::dispatch::{all_f32, all_f64};
use super::reference::{CouplingCase, NetCase, Parameters, close, numbers};
use super::window::{Channels, Planes, Window};
use super::{
    Autoregressive, Coupling, Gradients, Layer, LogScale, Map, Net, Ops, Order, Scalar, Shape,
    Spline, SplineForm, SplineTails,
};

/// Every map in both orders, on every odd size, with the identity part on either side.
fn cases() -> Vec<CouplingCase> {
    let log_scales = [
        (LogScale::Sigmoid, [-4.0, 4.0]),
        (LogScale::Sigmoid, [-0.12, 4.0]),
        (LogScale::InverseSigmoid, [-4.0, 0.12]),
        (LogScale::Exp, [-0.3, 0.4]),
        (LogScale::Bounded { bound: 1.5 }, [-4.0, 4.0]),
        (LogScale::Bounded { bound: 1.5 }, [-0.4, 0.3]),
        (LogScale::Tanh { gain: &[] }, [-4.0, 4.0]),
        (LogScale::Tanh { gain: &[] }, [-0.05, 0.1]),
    ];
    let orders = [Order::ScaleThenShift, Order::ShiftThenScale];
    let affine = orders
        .into_iter()
        .flat_map(|order| log_scales.map(|(log_scale, limits)| Some((order, log_scale, limits))));
    let maps: Vec<_> = affine.chain([None]).collect();
    let mut cases = Vec::new();
    for (index, net) in NetCase::odd_ones().into_iter().enumerate() {
        // One large case in f64 finite differences would take minutes.
        let few = net.height * net.width > 100 || net.batch > 20;
        for (number, &affine) in
            maps.iter().enumerate().filter(|(number, _)| !few || number % 4 == 0)
        {
            let transformed = net.inputs + (index + number) % 2;
            let outputs = transformed * if affine.is_some() { 2 } else { 1 };
            let net = NetCase { outputs, ..net.clone() };
            cases.push(CouplingCase { net, identity_first: number % 3 != 0, transformed, affine });
        }
    }
    cases
}

fn data(case: &CouplingCase) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let count = case.channels() * case.net.batch * case.net.height * case.net.width;
    (numbers(count, 1), numbers(count, 2), numbers(case.net.batch, 3))
}

fn narrow(row: &[f64]) -> Vec<f32> {
    row.iter().map(|&v| v as f32).collect()
}

fn wide<T: Scalar>(row: &[T]) -> Vec<f64> {
    row.iter().map(|v| v.to_f64()).collect()
}

fn flat<T: Scalar>(gradients: &Gradients<T>) -> Vec<Vec<f64>> {
    let layers = gradients.layers.iter().flat_map(|layer| [wide(&layer.weight), wide(&layer.bias)]);
    layers.chain([wide(&gradients.gain)]).collect()
}

#[test]
fn forward_agrees_with_direct_loops() {
    for case in cases() {
        let (parameters, gain, (x, _, _)) = (case.net.parameters(), case.gain(), data(&case));
        let (z, log_det) = case.coupling(&parameters, &gain).forward(&x, case.shape());
        let (naive_z, naive_log_det) = case.naive(&parameters, &gain, &x);
        close(&z, &naive_z, 1e-12);
        close(&log_det, &naive_log_det, 1e-12);
    }
}

#[test]
fn inverse_and_pull_back_return_the_data() {
    for case in cases() {
        let (parameters, gain, (x, dz, dlog_det)) =
            (case.net.parameters(), case.gain(), data(&case));
        let coupling = case.coupling(&parameters, &gain);
        let z = coupling.forward(&x, case.shape()).0;
        close(&coupling.inverse(&z, case.shape()), &x, 1e-12);
        let pulled = coupling.pull_back(&z, &dz, &dlog_det, case.shape());
        close(&pulled.x, &x, 1e-12);
        let direct = coupling.backward(&x, &dz, &dlog_det, case.shape());
        close(&pulled.dx, &direct.dx, 1e-10);
        for (a, b) in flat(&pulled.gradients).iter().zip(flat(&direct.gradients)) {
            close(a, &b, 1e-10);
        }
    }
}

#[test]
fn single_precision_agrees_with_double() {
    for case in cases() {
        let (parameters, gain, (x, dz, dlog_det)) =
            (case.net.parameters(), case.gain(), data(&case));
        let exact = case.coupling(&parameters, &gain);
        let (parameters, gain) = (case.net.parameters(), case.gain());
        let single = case.coupling(&parameters, &gain);
        let (z, log_det) = exact.forward(&x, case.shape());
        let (z32, log_det32) = single.forward(&narrow(&x), case.shape());
        close(&wide(&z32), &z, 1e-5);
        close(&wide(&log_det32), &log_det, 1e-5);
        let pulled = exact.pull_back(&z, &dz, &dlog_det, case.shape());
        let pulled32 = single.pull_back(&z32, &narrow(&dz), &narrow(&dlog_det), case.shape());
        close(&wide(&pulled32.x), &x, 1e-5);
        close(&wide(&pulled32.dx), &pulled.dx, 1e-4);
        for (a, b) in flat(&pulled32.gradients).iter().zip(flat(&pulled.gradients)) {
            close(a, &b, 1e-4);
        }
    }
}

/// What is kept is what would be computed again: not a bit may differ. The large case has several
/// blocks a thread, and a last one that is not full.
#[test]
fn backward_from_kept_activations_is_backward() {
    let (mut with_weights, mut without) = (0, 0);
    for case in cases().into_iter().chain([glow_case()]) {
        let (parameters, gain, (x, dz, dlog_det)) =
            (case.net.parameters(), case.gain(), data(&case));
        let coupling = case.coupling(&parameters, &gain);
        let (z, log_det, kept) = coupling.forward_keeping(&x, case.shape());
        assert_eq!((z, log_det), coupling.forward(&x, case.shape()));
        let kept = kept.expect("small enough to keep");
        *(if kept.packed.is_some() { &mut with_weights } else { &mut without }) += 1;
        let from_kept = coupling.backward_from(kept, &x, &dz, &dlog_det, case.shape());
        let direct = coupling.backward(&x, &dz, &dlog_det, case.shape());
        assert_eq!(from_kept.dx, direct.dx);
        assert_eq!(from_kept.gradients, direct.gradients);
    }
    assert!(with_weights > 0 && without > 0, "{with_weights} nets stay packed, {without} do not");
}

/// The weights of layers in front of no window, in memory the other way around.
#[test]
fn transposed_weights_compute_the_same() {
    let turned = |weight: &[f64], inputs: usize| -> Vec<f64> {
        let outputs = weight.len() / inputs;
        (0..weight.len()).map(|at| weight[at % outputs * inputs + at / outputs]).collect()
    };
    for case in cases() {
        let (parameters, gain, (x, dz, dlog_det)) =
            (case.net.parameters(), case.gain(), data(&case));
        let plain = case.coupling(&parameters, &gain);
        let layers = &plain.net.layers;
        let is_turned = |index| plain.net.taps_behind(index) == 1;
        let weights: Vec<_> =
            layers.iter().map(|layer| turned(layer.weight, layer.inputs)).collect();
        let mut other = plain.clone();
        for (index, layer) in other.net.layers.iter_mut().enumerate() {
            if is_turned(index) {
                (layer.weight, layer.transposed) = (&weights[index], true);
            }
        }
        assert_eq!(other.forward(&x, case.shape()), plain.forward(&x, case.shape()));
        let expected = plain.backward(&x, &dz, &dlog_det, case.shape());
        let found = other.backward(&x, &dz, &dlog_det, case.shape());
        assert_eq!(found.dx, expected.dx);
        for (index, layer) in layers.iter().enumerate() {
            let expected = &expected.gradients.layers[index];
            let found = &found.gradients.layers[index];
            assert_eq!(found.bias, expected.bias);
            match is_turned(index) {
                true => assert_eq!(found.weight, turned(&expected.weight, layer.inputs)),
                false => assert_eq!(found.weight, expected.weight),
            }
        }
    }
}

/// Step of a central difference in f64, whose error is then about 1e-10.
const STEP: f64 = 1e-6;

/// Compares gradients with central differences of `loss` by up to 12 numbers of each row.
fn check_differences(
    rows: &mut [Vec<f64>],
    gradients: &[Vec<f64>],
    loss: impl Fn(&[Vec<f64>]) -> f64,
) {
    for row in 0..rows.len() {
        let size = gradients[row].iter().fold(1.0_f64, |size, value| size.max(value.abs()));
        let stride = (rows[row].len() / 12).max(1);
        for i in (0..rows[row].len()).step_by(stride) {
            let start = rows[row][i];
            rows[row][i] = start + STEP;
            let up = loss(rows);
            rows[row][i] = start - STEP;
            let down = loss(rows);
            rows[row][i] = start;
            let (numeric, exact) = ((up - down) / (2.0 * STEP), gradients[row][i]);
            assert!(
                (numeric - exact).abs() < 1e-6 * size,
                "row {row}, number {i}: {exact}, but differences say {numeric}"
            );
        }
    }
}

/// Rows of parameters, as [`flat`] lists their gradients, back to pairs.
fn paired(rows: &[Vec<f64>]) -> Parameters<f64> {
    rows.as_chunks::<2>().0.iter().map(|[weight, bias]| (weight.clone(), bias.clone())).collect()
}

#[test]
fn gradients_agree_with_finite_differences() {
    for case in cases() {
        let (parameters, gain, (x, dz, dlog_det)) =
            (case.net.parameters(), case.gain::<f64>(), data(&case));
        let result = case.coupling(&parameters, &gain).backward(&x, &dz, &dlog_det, case.shape());
        let mut rows: Vec<_> =
            parameters.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect();
        let layers = rows.len();
        let mut gradients = flat(&result.gradients);
        let gain_row = gradients.pop().filter(|row| !row.is_empty());
        rows.push(x);
        gradients.push(result.dx);
        let has_gain = gain_row.is_some();
        if let Some(row) = gain_row {
            rows.push(gain.clone());
            gradients.push(row);
        }
        check_differences(&mut rows, &gradients, |rows| {
            let parameters = paired(&rows[..layers]);
            let gain = if has_gain { &rows[layers + 1] } else { &gain };
            let (z, log_det) =
                case.coupling(&parameters, gain).forward(&rows[layers], case.shape());
            let value: f64 = z.iter().zip(&dz).map(|(a, b)| a * b).sum();
            value + log_det.iter().zip(&dlog_det).map(|(a, b)| a * b).sum::<f64>()
        });
    }
}

/// A Glow coupling large enough for two threads and several blocks.
fn glow_case() -> CouplingCase {
    let net = NetCase {
        batch: 25,
        inputs: 2,
        outputs: 4,
        height: 14,
        width: 14,
        hidden: vec![40, 40],
        ..NetCase::odd_ones()[0].clone()
    };
    let affine = Some((Order::ShiftThenScale, LogScale::Sigmoid, [-4.0, 4.0]));
    CouplingCase { net, identity_first: true, transformed: 2, affine }
}

#[test]
fn results_repeat_bit_for_bit_and_samples_do_not_mix() {
    let case = glow_case();
    let (x, dz, dlog_det) = data(&case);
    let (x, dz, dlog_det) = (narrow(&x), narrow(&dz), narrow(&dlog_det));
    let (parameters, gain) = (case.net.parameters::<f32>(), case.gain());
    let coupling = case.coupling(&parameters, &gain);
    let (z, log_det) = coupling.forward(&x, case.shape());
    let first = coupling.pull_back(&z, &dz, &dlog_det, case.shape());
    let second = coupling.pull_back(&z, &dz, &dlog_det, case.shape());
    assert_eq!(first.gradients, second.gradients);
    assert_eq!(first.dx, second.dx);
    let sample = x.len() / case.net.batch;
    for i in [0, 7, 24] {
        let mut alone = case.clone();
        alone.net.batch = 1;
        let (z_alone, log_det_alone) = coupling.forward(&x[i * sample..][..sample], alone.shape());
        assert_eq!(z_alone, z[i * sample..][..sample]);
        assert_eq!(log_det_alone, log_det[i..=i]);
    }
}

#[test]
fn a_bad_sample_spoils_itself_only() {
    let case = glow_case();
    let mut x = narrow(&data(&case).0);
    let sample = x.len() / case.net.batch;
    x[3 * sample + 20] = f32::NAN;
    let (parameters, gain) = (case.net.parameters::<f32>(), case.gain());
    let (z, log_det) = case.coupling(&parameters, &gain).forward(&x, case.shape());
    assert!(log_det[3].is_nan(), "NaN must not vanish");
    assert!(z[..3 * sample].iter().chain(&z[4 * sample..]).all(|value| value.is_finite()));
}

#[test]
fn huge_and_tiny_inputs_stay_finite() {
    for case in cases() {
        let (parameters, gain, (x, dz, dlog_det)) =
            (case.net.parameters::<f32>(), case.gain(), data(&case));
        let coupling = case.coupling(&parameters, &gain);
        for scale in [1e-6, 1e4] {
            let x: Vec<f32> = x.iter().map(|&v| (v * scale) as f32).collect();
            let (z, log_det) = coupling.forward(&x, case.shape());
            let pulled = coupling.pull_back(&z, &narrow(&dz), &narrow(&dlog_det), case.shape());
            let all = [&z, &log_det, &pulled.x, &pulled.dx];
            assert!(all.into_iter().flatten().all(|value| value.is_finite()));
            assert!(flat(&pulled.gradients).iter().flatten().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn an_empty_batch_is_no_special_case() {
    let mut case = glow_case();
    case.net.batch = 0;
    let (parameters, gain) = (case.net.parameters::<f32>(), case.gain());
    let coupling = case.coupling(&parameters, &gain);
    assert_eq!(coupling.forward(&[], case.shape()), (vec![], vec![]));
    let pulled = coupling.pull_back(&[], &[], &[], case.shape());
    assert!(pulled.gradients.layers[1].weight.iter().all(|&value| value == 0.0));
}

#[test]
#[should_panic(expected = "Coupling: the net must write 3 channels")]
fn a_net_of_the_wrong_width_is_refused() {
    let mut case = glow_case();
    case.affine = None;
    case.transformed = 3;
    let (parameters, gain) = (case.net.parameters::<f32>(), case.gain());
    case.coupling(&parameters, &gain).forward(&[0.0; 5 * 14 * 14 * 25], case.shape());
}

/// Output of the net and gradient of its input, first weight and first bias, by the code for one
/// instruction set.
fn run<T: Scalar>(
    ops: &'static Ops<T>,
    case: &NetCase,
    input: &[f64],
    keep: bool,
) -> [Vec<f64>; 4] {
    let parameters = case.parameters::<T>();
    let net = case.net(&parameters);
    let (batch, pixels) = (case.batch, case.height * case.width);
    let mut conditioner = Conditioner::with_ops(
        ops,
        &net,
        None,
        None,
        [case.height, case.width],
        batch,
        Pass::Gradients,
    );
    conditioner.keep = keep;
    // The batch must be one block here, as the buffers of a backward pass hold one.
    assert!(conditioner.pictures == batch);
    let geometry = &conditioner.geometry;
    let mut identity = Planes::new(geometry, case.inputs, batch);
    let mut didentity = Planes::new(geometry, case.inputs, batch);
    let mut params = Planes::new(geometry, case.outputs, batch);
    let mut buffers = conditioner.buffers(true);
    let mut sums = conditioner.partial_gradients();
    let input: Vec<T> = input.iter().map(|&v| T::from_f64(v)).collect();
    identity.load(&input, Channels::all(case.inputs), 0..case.inputs, pixels);
    didentity.clear();
    conditioner.forward(&mut buffers, &identity, &mut params, batch);
    let mut output = vec![T::ZERO; batch * case.outputs * pixels];
    params.store(&mut output, Channels::all(case.outputs), 0..case.outputs, pixels);
    // The gradient of half the sum of squares is the output itself.
    params.load(&output, Channels::all(case.outputs), 0..case.outputs, pixels);
    conditioner.backward(&mut buffers, &identity, &params, &mut didentity, &mut sums, batch);
    let mut dx = vec![T::ZERO; input.len()];
    didentity.store(&mut dx, Channels::all(case.inputs), 0..case.inputs, pixels);
    let first = conditioner.finish(&[sums]).layers.swap_remove(0);
    [output, dx, first.weight, first.bias].map(|row| wide(&row))
}

#[test]
fn every_instruction_set_computes_the_same() {
    for case in NetCase::odd_ones() {
        let input = case.input();
        let exact = run(all_f64()[0], &case, &input, true);
        close(&exact[0], &case.naive(&case.parameters(), &input), 1e-12);
        for keep in [true, false] {
            for ops in all_f64() {
                let rows = run(ops, &case, &input, keep);
                rows.iter().zip(&exact).for_each(|(a, b)| close(a, b, 1e-11));
            }
            for ops in all_f32() {
                let rows = run(ops, &case, &input, keep);
                rows.iter().zip(&exact).for_each(|(a, b)| close(a, b, 1e-4));
            }
        }
    }
}

/// Layers that see a context, autoregressive ones too: of many samples, in tiles, in blocks and on
/// threads, what they make of a few.
#[test]
fn layers_with_a_context_take_each_sample_alone() {
    const BATCH: usize = 5001;
    const FEW: usize = 50;
    const FEATURES: usize = 5;
    const WIDTH: usize = 3;
    let form = SplineForm::Bent { size_limit: -2.0, slope_limit: -4.0 };
    let spline = Spline { bins: 3, interval: [-1.5, 2.0], tails: SplineTails::Linear, form };
    let log_scale = LogScale::Bounded { bound: 1.5 };
    let affine = Map::Affine { order: Order::ScaleThenShift, log_scale, limits: [-4.0, 4.0] };
    let order = [1, 0, 3, 2, 3];
    let degrees = [vec![0, 1, 1, 2, 3, 3, 3], vec![0, 0, 1, 2, 2, 2, 3, 3, 3]];
    for map in [affine, Map::Additive, Map::Spline(spline)] {
        for is_autoregressive in [false, true] {
            let (seen, changed) = if is_autoregressive { (5, 5) } else { (3, 2) };
            let sizes = [seen + WIDTH, 7, 9, changed * map.params_per_channel()];
            let weights: Vec<_> =
                sizes.windows(2).map(|pair| numbers(pair[0] * pair[1], pair[1] as u64)).collect();
            // The context's weights, behind the others, have none.
            let masks: Vec<Vec<f64>> = (0..3)
                .map(|index| {
                    let rows = if index == 0 { FEATURES } else { sizes[index] };
                    let outputs = order.repeat(map.params_per_channel());
                    let is_used = |at: usize| {
                        let (from, to) = (at / sizes[index + 1], at % sizes[index + 1]);
                        match index {
                            0 => order[from] < degrees[0][to],
                            1 => degrees[0][from] <= degrees[1][to],
                            _ => degrees[1][from] <= outputs[to],
                        }
                    };
                    let count = rows * sizes[index + 1];
                    let used = (0..count).map(|at| is_autoregressive && is_used(at));
                    used.map(|used| if used { 1.0 } else { 0.0 }).collect()
                })
                .collect();
            let biases: Vec<_> =
                sizes[1..].iter().map(|&size| numbers(size, 40 + size as u64)).collect();
            let layers = weights.iter().zip(&biases).zip(&masks).zip(sizes.windows(2));
            let layers = layers.map(|(((weight, bias), mask), pair)| Layer {
                inputs: pair[0],
                outputs: pair[1],
                weight,
                transposed: true,
                mask: is_autoregressive.then_some(mask),
                bias,
            });
            let net = Net {
                layers: layers.collect(),
                first: Window::Pixel,
                last: Window::Pixel,
                negative_slope: 0.0,
            };
            let (identity, transformed, step) =
                if is_autoregressive { (0..5, 0..5, 1) } else { (0..5, 1..5, 2) };
            let context = numbers(BATCH * WIDTH, 4);
            let all = Coupling {
                identity,
                transformed,
                step,
                context: &context,
                context_width: WIDTH,
                map,
                net,
            };
            let (x, dz) = (numbers(BATCH * FEATURES, 1), numbers(BATCH * FEATURES, 2));
            let dlog_det = numbers(BATCH, 3);
            let shape = |batch| Shape { batch, channels: FEATURES, height: 1, width: 1 };
            let inverse = |layer: &Coupling<f64>, z: &[f64], shape| match is_autoregressive {
                true => {
                    Autoregressive { layer, order: &order, degrees: &degrees }.inverse(z, shape)
                }
                false => layer.inverse(z, shape),
            };
            let (z, log_det, kept) = all.forward_keeping(&x, shape(BATCH));
            close(&inverse(&all, &z, shape(BATCH)), &x, 1e-9);
            let kept = kept.expect("they are small");
            let back = all.backward_from(kept, &x, &dz, &dlog_det, shape(BATCH));
            let mut sums: Vec<Vec<f64>> = Vec::new();
            for first in (0..BATCH).step_by(FEW) {
                let count = FEW.min(BATCH - first);
                let rows = |width: usize| first * width..(first + count) * width;
                let few = Coupling { context: &context[rows(WIDTH)], ..all.clone() };
                let (x, dz) = (&x[rows(FEATURES)], &dz[rows(FEATURES)]);
                let (few_z, few_log_det) = few.forward(x, shape(count));
                close(&z[rows(FEATURES)], &few_z, 1e-12);
                close(&log_det[rows(1)], &few_log_det, 1e-12);
                close(&inverse(&few, &few_z, shape(count)), x, 1e-9);
                let few_back = few.backward(x, dz, &dlog_det[rows(1)], shape(count));
                close(&back.dx[rows(FEATURES)], &few_back.dx, 1e-12);
                close(&back.dcontext[rows(WIDTH)], &few_back.dcontext, 1e-12);
                let gradients = flat(&few_back.gradients);
                match sums.is_empty() {
                    true => sums = gradients,
                    false => sums
                        .iter_mut()
                        .flatten()
                        .zip(gradients.iter().flatten())
                        .for_each(|(sum, more)| *sum += more),
                }
            }
            for (got, sum) in flat(&back.gradients).iter().zip(&sums) {
                close(got, sum, 1e-10);
            }
        }
    }
}
