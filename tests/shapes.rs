//! Round trips over random shapes, and every error of configurations and shapes by its text.

mod fixtures;

use std::sync::OnceLock;

use burn_flows::FlowError;
use burn_flows::metrics::inversion_error;
use burn_flows::prior::{Prior, SplitPrior};
use fixtures::*;
use proptest::prelude::*;

/// Cases of each property: a few seconds for all.
const CASES: u32 = 100;

/// Of one layer's round trip in f32, relative to the largest value.
const ROUND_TRIP: f64 = 1e-5;

fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| devices().swap_remove(0).1).clone()
}

/// Moves the parameters and goes there and back.
fn there_and_back<const D: usize, F: Flow<D>>(
    make: impl Fn(&mut StdRng, &Device) -> Result<F>,
    shape: [usize; D],
) -> std::result::Result<(), TestCaseError> {
    let device = device();
    let flow = move_parameters(build(1, &device, make), 2, 0.02);
    let x = inputs(shape, 3, &device, DType::F32);
    let (z, log_det) = flow.forward(x.clone());
    prop_assert_eq!(z.dims(), flow.latent_shape(shape).unwrap());
    prop_assert_eq!(log_det.dims(), [shape[0]]);
    prop_assert!(values(log_det).iter().all(|value| value.is_finite()));
    let largest = values(x.clone()).iter().fold(0.0f64, |max, value| max.max(value.abs()));
    let error = inversion_error(&flow, x) / (1.0 + largest);
    prop_assert!(error <= ROUND_TRIP, "{shape:?}: error {error}");
    Ok(())
}

fn mask() -> impl Strategy<Value = Mask> {
    let parity = prop_oneof![Just(Parity::Even), Just(Parity::Odd)];
    (parity, 0..3).prop_map(|(parity, kind)| match kind {
        0 => Mask::ChannelHalves(parity),
        1 => Mask::Alternating(parity),
        _ => Mask::Checkerboard(parity),
    })
}

fn scale_map() -> impl Strategy<Value = ScaleMap> {
    prop_oneof![
        Just(ScaleMap::Sigmoid),
        Just(ScaleMap::InverseSigmoid),
        Just(ScaleMap::Exp),
        Just(ScaleMap::Tanh),
        (0.1..4.0).prop_map(|bound| ScaleMap::BoundedExp { bound }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn linear_layers(batch in 1..4usize, c in 1..70usize, h in 1..6usize, w in 1..6usize) {
        let shape = [batch, c, h, w];
        there_and_back(|_, device| ActNorm::new(c, device), shape)?;
        there_and_back(|_, device| DiagonalScaling::new(c, device), shape)?;
        there_and_back(|rng, device| InvertibleConv1x1::plain(c, rng, device), shape)?;
        there_and_back(|rng, device| InvertibleConv1x1::plu(c, rng, device), shape)?;
        there_and_back(|rng, device| Permutation::shuffle(c, rng, device), shape)?;
        there_and_back(|_, device| Permutation::swap_halves(c, device), [batch, c])?;
        there_and_back(|rng, device| InvertibleConv1x1::plain(c, rng, device), [batch, c])?;
    }

    #[test]
    fn couplings_of_vectors(
        batch in 1..5usize,
        features in 2..40usize,
        mask in mask(),
        scale_map in scale_map(),
    ) {
        there_and_back(|_, device| additive_mlp(features, mask, device), [batch, features])?;
        there_and_back(|_, device| affine_mlp(features, mask, scale_map, device), [batch, features])?;
    }

    #[test]
    fn couplings_of_images(
        batch in 1..3usize,
        c in 2..20usize,
        h in 1..7usize,
        w in 1..7usize,
        mask in mask(),
        scale_map in scale_map(),
    ) {
        there_and_back(
            |_, device| affine_net(c, mask, scale_map, NetNorm::ActNorm, 0.0, device),
            [batch, c, h, w],
        )?;
    }

    #[test]
    fn checkerboards_of_one_channel(batch in 1..3usize, h in 1..9usize, w in 1..9usize) {
        let mask = Mask::Checkerboard(Parity::of(h));
        there_and_back(
            |_, device| affine_net(1, mask, ScaleMap::default(), NetNorm::Bias, 0.0, device),
            [batch, 1, h, w],
        )?;
    }

    #[test]
    fn squeezes(batch in 1..4usize, c in 1..9usize, h in 1..6usize, w in 1..6usize) {
        there_and_back(|_, _| Ok(Squeeze::new()), [batch, c, 2 * h, 2 * w])?;
    }

    #[test]
    fn glow_stacks(
        batch in 1..3usize,
        c in 1..4usize,
        h in 1..4usize,
        w in 1..4usize,
        levels in 1..4usize,
        plu in any::<bool>(),
    ) {
        let image = [c, h << levels, w << levels];
        let mixing = if plu { GlowMixingKind::Conv1x1Plu } else { GlowMixingKind::Conv1x1 };
        there_and_back(
            |rng, device| glow(image, levels).with_mixing(mixing).init(rng, device),
            [batch, image[0], image[1], image[2]],
        )?;
    }

    #[test]
    fn levels_that_do_not_fit_are_refused(c in 1..4usize, h in 1..40usize, w in 1..40usize) {
        let fit = h.trailing_zeros().min(w.trailing_zeros()) as usize;
        let config = |levels| GlowConfig::new([c, h, w], levels, 1, 4);
        let refused = config(fit + 1).validate().is_err();
        prop_assert!(refused);
        prop_assert_eq!(config(fit).validate().is_ok(), fit > 0);
    }
}

fn refused<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("this should have been refused"),
        Err(error @ FlowError::Config { .. }) => error.to_string(),
        Err(error) => panic!("of another kind: {error:?}"),
    }
}

#[test]
fn layers_of_no_size_are_refused() {
    let (device, rng) = (device(), &mut rng(0));
    assert_eq!(
        refused(ActNorm::new(0, &device)),
        "ActNorm: num_channels is 0, but must be at least 1; give the number of channels of the input"
    );
    assert_eq!(
        refused(DiagonalScaling::new(0, &device)),
        "DiagonalScaling: num_features is 0, but must be at least 1; give the number of features of \
         the input"
    );
    for layer in
        [InvertibleConv1x1::plain(0, rng, &device), InvertibleConv1x1::plu(0, rng, &device)]
    {
        assert_eq!(
            refused(layer),
            "InvertibleConv1x1: num_channels is 0, but must be at least 1; give the number of \
             channels of the input"
        );
    }
    assert_eq!(
        refused(MlpConfig::new(2, vec![4, 0], 2).init(&device)),
        "Mlp: widths is [2, 4, 0, 2], but must be at least 1 each; give every layer a width"
    );
    for (config, parameter) in [
        (GlowNetConfig::new(0, 4, 2), "channels_in"),
        (GlowNetConfig::new(2, 0, 2), "hidden_width"),
        (GlowNetConfig::new(2, 4, 0), "channels_out"),
    ] {
        assert_eq!(
            refused(config.init(&device)),
            format!("GlowNet: {parameter} is 0, but must be at least 1; give every layer a width")
        );
    }
}

#[test]
fn orders_that_are_no_permutations_are_refused() {
    let device = device();
    for (order, text) in
        [(&[][..], "[]"), (&[0, 0], "[0, 0]"), (&[1, 2], "[1, 2]"), (&[0, 2, 3], "[0, 2, 3]")]
    {
        assert_eq!(
            refused(Permutation::new(order, &device)),
            format!(
                "Permutation: order is {text}, but must be every index from 0 to n - 1 once, and not \
                 empty; pass a permutation of the channels"
            )
        );
    }
    assert!(Permutation::reverse(0, &device).is_err());
    assert!(Permutation::shuffle(0, &mut rng(0), &device).is_err());
    assert!(Permutation::swap_halves(0, &device).is_err());
}

#[test]
fn couplings_with_nothing_to_do_are_refused() {
    let device = device();
    for mask in [Mask::first_half(), Mask::second_half(), Mask::Alternating(Parity::Even)] {
        let net = MlpConfig::new(1, vec![4], 2).init(&device).unwrap();
        assert_eq!(
            refused(Coupling::affine(net, mask, ScaleMap::default(), 1, &device)),
            "AffineCoupling: num_channels is 1, but must be at least 2 for a split along the \
             channels; squeeze the image first, or use a checkerboard mask"
        );
    }
    for (bound, text) in [(0.0, "0"), (-1.0, "-1"), (f64::INFINITY, "inf"), (f64::NAN, "NaN")] {
        let scale_map = ScaleMap::BoundedExp { bound };
        assert_eq!(
            refused(affine_mlp(4, Mask::first_half(), scale_map, &device)),
            format!(
                "AffineCoupling: bound is {text}, but must be positive and finite; 2.0 is the usual \
                 choice"
            )
        );
    }
}

#[test]
fn stacks_that_do_not_fit_their_samples_are_refused() {
    let device = device();
    let prior = StandardNormal::new;
    let norm = || ActNorm::new(2, &device).unwrap();
    assert_eq!(
        refused(FlowStack::<2, ActNorm, _, StandardNormal>::new(vec![], vec![], prior(), &[2])),
        "FlowStack: levels is 0, but must be at least 1; give the stack at least one level"
    );
    assert_eq!(
        refused(FlowStack::<2, _, _, StandardNormal>::new(
            vec![norm(), norm()],
            vec![],
            prior(),
            &[2]
        )),
        "FlowStack: split_priors is 0, but must be 1, one between every two of 2 levels; add or \
         remove split priors"
    );
    for (sample_shape, text) in [(&[][..], "[]"), (&[0], "[0]"), (&[2, 2], "[2, 2]")] {
        assert_eq!(
            refused(FlowStack::<2, _>::single(norm(), prior(), sample_shape)),
            format!(
                "FlowStack: sample_shape is {text}, but must be 1 sizes of at least 1; give the \
                 shape of one sample, without the batch: [features] or [channels, height, width]"
            )
        );
    }
    for (sides, text) in [([3, 4], "3x4"), ([4, 5], "4x5"), ([1, 1], "1x1")] {
        assert_eq!(
            refused(FlowStack::<4, _>::single(Squeeze::new(), prior(), &[1, sides[0], sides[1]])),
            format!(
                "Squeeze: height x width is {text}, but must be even and not zero on both sides; pad \
                 or crop the images, or use fewer levels (each halves height and width)"
            )
        );
    }
    // 6x6 halves once: the second level cannot squeeze.
    assert_eq!(
        refused(FlowStack::<4, _, _, _>::new(
            vec![Squeeze::new(), Squeeze::new()],
            vec![prior()],
            prior(),
            &[1, 6, 6]
        )),
        "Squeeze: height x width is 3x3, but must be even and not zero on both sides; pad or crop \
         the images, or use fewer levels (each halves height and width)"
    );
    assert_eq!(
        refused(FlowStack::<2, _, _, _>::new(
            vec![None::<ActNorm>, None],
            vec![prior()],
            prior(),
            &[1]
        )),
        "FlowStack: channels at the split is 1, but must be at least 2; squeeze before the split, or \
         use fewer levels"
    );
}

#[test]
fn glow_configurations_that_cannot_be_built_are_refused() {
    let device = device();
    let good = || GlowConfig::new([1, 28, 28], 2, 2, 8);
    let bound = GlowCouplingKind::Affine(ScaleMap::BoundedExp { bound: -2.0 });
    for (config, text) in [
        (
            GlowConfig { image_shape: [0, 28, 28], ..good() },
            "image_shape is 0, but must be at least 1; raise it",
        ),
        (
            GlowConfig { image_shape: [1, 28, 0], ..good() },
            "image_shape is 0, but must be at least 1; raise it",
        ),
        (
            GlowConfig { num_levels: 0, ..good() },
            "num_levels is 0, but must be at least 1; raise it",
        ),
        (GlowConfig { num_steps: 0, ..good() }, "num_steps is 0, but must be at least 1; raise it"),
        (
            GlowConfig { hidden_width: 0, ..good() },
            "hidden_width is 0, but must be at least 1; raise it",
        ),
        (
            GlowConfig { num_levels: 3, ..good() },
            "num_levels is 3, but must be at most 2, as often as both sides of 28x28 halve; use \
             fewer levels, or pad or crop the images to a multiple of a power of two",
        ),
        (
            GlowConfig { image_shape: [1, 27, 28], num_levels: 1, ..good() },
            "num_levels is 1, but must be at most 0, as often as both sides of 27x28 halve; use \
             fewer levels, or pad or crop the images to a multiple of a power of two",
        ),
        (
            good().with_coupling(bound),
            "bound is -2, but must be positive and finite; 2.0 is the usual choice",
        ),
    ] {
        assert_eq!(refused(config.init(&mut rng(0), &device)), format!("Glow: {text}"));
    }
}

#[test]
fn wrong_shapes_panic_in_the_name_of_the_layer() {
    let device = &device();
    let x = |shape| inputs::<4>(shape, 1, device, DType::F32);
    let vectors = |shape| inputs::<2>(shape, 1, device, DType::F32);
    let rng = &mut rng(0);

    let norm = ActNorm::new(3, device).unwrap();
    let scaling = DiagonalScaling::new(3, device).unwrap();
    let conv = InvertibleConv1x1::plain(3, rng, device).unwrap();
    let permutation = Permutation::reverse(3, device).unwrap();
    let squeeze = Squeeze::new();
    let stack = glow([1, 4, 4], 1).init(rng, device).unwrap();
    let halves = affine_net(4, Mask::first_half(), ScaleMap::Exp, NetNorm::Bias, 0.0, device);
    let halves = halves.unwrap();
    let mlp = additive_mlp(4, Mask::first_half(), device).unwrap();
    let narrow = additive_mlp(2, Mask::first_half(), device).unwrap();

    let of_3 = "but was built for 3 channels on axis 1";
    let cases: Vec<(Box<dyn Fn() + '_>, String)> = vec![
        (Box::new(|| drop(norm.forward(x([2, 2, 4, 4])))), format!("ActNorm: got shape [2, 2, 4, 4], {of_3}")),
        (Box::new(|| drop(norm.inverse(vectors([2, 4])))), format!("ActNorm: got shape [2, 4], {of_3}")),
        (Box::new(|| drop(norm.clone().initialize(vectors([2, 4])))), format!("ActNorm: got shape [2, 4], {of_3}")),
        (Box::new(|| drop(scaling.forward(vectors([2, 4])))), "DiagonalScaling: got shape [2, 4], but was built for 3 features on axis 1".into()),
        (Box::new(|| drop(scaling.inverse(vectors([2, 4])))), "DiagonalScaling: got shape [2, 4], but was built for 3 features on axis 1".into()),
        (Box::new(|| drop(conv.forward(x([2, 2, 4, 4])))), format!("InvertibleConv1x1: got shape [2, 2, 4, 4], {of_3}")),
        (Box::new(|| drop(conv.inverse(x([2, 2, 4, 4])))), format!("InvertibleConv1x1: got shape [2, 2, 4, 4], {of_3}")),
        (Box::new(|| drop(permutation.forward(vectors([2, 4])))), format!("Permutation: got shape [2, 4], {of_3}")),
        (Box::new(|| drop(permutation.inverse(vectors([2, 2])))), format!("Permutation: got shape [2, 2], {of_3}")),
        (Box::new(|| drop(squeeze.forward(x([1, 1, 3, 4])))), "Squeeze: height x width is 3x4, but must be even and not zero on both sides; pad or crop the images, or use fewer levels (each halves height and width)".into()),
        (Box::new(|| drop(squeeze.inverse(x([1, 6, 2, 2])))), "Squeeze: inverse of shape [1, 6, 2, 2]: the 6 channels must be a multiple of 4".into()),
        (Box::new(|| drop(stack.forward(x([1, 1, 4, 8])))), "FlowStack: got shape [1, 1, 4, 8], but was built for samples of shape [1, 4, 4]".into()),
        (Box::new(|| drop(stack.inverse(x([1, 1, 8, 4])))), "FlowStack: got shape [1, 1, 8, 4], but was built for samples of shape [1, 4, 4]".into()),
        (Box::new(|| drop(stack.log_prob(x([1, 3, 4, 4])))), "FlowStack: got shape [1, 3, 4, 4], but was built for samples of shape [1, 4, 4]".into()),
        (Box::new(|| drop(stack.clone().initialize(x([1, 3, 4, 4])))), "FlowStack: got shape [1, 3, 4, 4], but was built for samples of shape [1, 4, 4]".into()),
        (Box::new(|| drop(halves.forward(x([1, 6, 4, 4])))), "Conv: got shape [1, 3, 4, 4], but was built for 2 channels on axis 1".into()),
        (Box::new(|| drop(halves.forward(x([1, 3, 4, 4])))), "Coupling: the conditioner gave params of shape [1, 4, 4, 4], but [1, 1, 4, 4] transformed channels need [1, 2, 4, 4]; give the conditioner 2 output channels".into()),
        (Box::new(|| drop(mlp.forward(vectors([2, 6])))), "Mlp: got shape [2, 3], but was built for 2 features on axis 1".into()),
        (Box::new(|| drop(narrow.forward(vectors([2, 1])))), "Coupling: got shape [2, 1], but a split along axis 1 needs at least 2 there; squeeze the image first, or use a checkerboard mask".into()),
        (Box::new(|| drop(narrow.inverse(vectors([2, 1])))), "Coupling: got shape [2, 1], but a split along axis 1 needs at least 2 there; squeeze the image first, or use a checkerboard mask".into()),
    ];
    for (action, text) in cases {
        assert_eq!(panic_message(action), text);
    }
}

/// What broadcasts is not taken for what fits: the density would be that of other values.
#[test]
fn priors_of_other_shapes_panic_in_their_own_name() {
    let device = &device();
    let vectors = |shape| inputs::<2>(shape, 1, device, DType::F32);
    let normal = DiagonalNormal::<2>::per_channel(3, device);
    let text = "DiagonalNormal: got latents of shape [2, 1], but was built for those of shape [1, 3], where 1 fits \
                any size";
    assert_eq!(panic_message(|| Prior::log_prob(&normal, vectors([2, 1]))), text);
    let draw = || Prior::sample(&normal, [2, 1], 1.0, &mut rng(0), device, DType::F32);
    assert_eq!(panic_message(draw), text);

    // Two numbers for each of three channels are needed; as many as one needs would serve them all.
    for outputs in [2, 4, 5] {
        let conditional = ConditionalNormal::new(mlp(3, outputs, device).unwrap());
        let text = format!(
            "ConditionalNormal: the net gave numbers of shape [2, {outputs}], but 3 channels are factored out; \
             give it 6 outputs"
        );
        let [z, kept] = [1, 2].map(|seed| inputs::<2>([2, 3], seed, device, DType::F32));
        assert_eq!(panic_message(|| conditional.log_prob(z.clone(), kept.clone())), text);
        let draw = || conditional.sample([2, 3], kept.clone(), 1.0, &mut rng(0));
        assert_eq!(panic_message(draw), text);
    }
}
