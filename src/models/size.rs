//! How large a model is, by its configuration alone: how many values its layers have, trained or not.
//!
//! All counts are floats, which do not overflow however large a size is.

use crate::conditioner::NetNorm;
use crate::data::Preparation;
use crate::error::{FlowError, Result};

/// The longest side, and the most channels, of an image: their product is far from overflowing.
const LONGEST_SIDE: usize = 1 << 16;

/// Levels that are counted at most: more than a side can be halved.
const MOST_LEVELS: usize = 64;

/// How many of `levels` to count.
pub(super) fn loops(levels: usize) -> usize {
    levels.min(MOST_LEVELS)
}

/// Whether sizes of images can be multiplied.
pub(super) fn check_sides(layer: &'static str, image_shape: [usize; 3]) -> Result<()> {
    if image_shape.iter().all(|&size| size <= LONGEST_SIDE) {
        return Ok(());
    }
    Err(FlowError::config(
        layer,
        "image_shape",
        format!("{image_shape:?}"),
        format!("at most {LONGEST_SIDE} each"),
        "give channels, height and width of an image",
    ))
}

/// Whether the images that pictures become are samples of the model.
pub(super) fn check_preparation(
    layer: &'static str,
    preparation: Option<Preparation>,
    sample_shape: &[usize],
) -> Result<()> {
    let Some(Preparation { image_shape, .. }) = preparation else { return Ok(()) };
    let values = |shape: &[usize]| shape.iter().map(|&size| size as f64).product::<f64>();
    if image_shape == *sample_shape
        || sample_shape.len() == 1 && values(&image_shape) == values(sample_shape)
    {
        return Ok(());
    }
    Err(FlowError::config(
        layer,
        "preparation",
        format!("one into images of {image_shape:?}"),
        format!("one into samples of {sample_shape:?}"),
        "prepare pictures as the model takes them",
    ))
}

/// Bias, log-scale and mark.
pub(super) fn act_norm(channels: f64) -> f64 {
    2.0 * channels + 1.0
}

/// Mean, variance and mark.
pub(super) fn moments(channels: f64) -> f64 {
    2.0 * channels + 1.0
}

/// Weights and biases.
pub(super) fn mlp(features_in: usize, hidden: &[usize], features_out: f64) -> f64 {
    let (mut sum, mut before) = (0.0, features_in as f64);
    for width in hidden.iter().map(|&width| width as f64).chain([features_out]) {
        sum += before * width + width;
        before = width;
    }
    sum
}

/// Weights, masks and biases of a `Made`, its order and degrees, and its weights for a context.
pub(super) fn made(features: usize, hidden: &[usize], params: f64, context: usize) -> f64 {
    let (mut weights, mut biases) = (0.0, 0.0);
    let mut before = features as f64;
    let widths = hidden.iter().map(|&width| width as f64).chain([params * features as f64]);
    for width in widths.clone() {
        weights += before * width;
        biases += width;
        before = width;
    }
    let degrees: f64 = hidden.iter().map(|&width| width as f64).sum();
    let first = widths.into_iter().next().unwrap_or(0.0);
    2.0 * weights + biases + features as f64 + degrees + context as f64 * first
}

/// The parts of a PLU matrix.
pub(super) fn plu(channels: f64) -> f64 {
    3.0 * channels * channels + 2.0 * channels
}

/// A 3x3 convolution with bias and log-scale.
pub(super) fn zero_conv(channels_in: f64, channels_out: f64) -> f64 {
    9.0 * channels_in * channels_out + 2.0 * channels_out
}

/// The net of Glow's couplings.
pub(super) fn glow_net(channels_in: f64, width: f64, channels_out: f64, norm: NetNorm) -> f64 {
    let norm = match norm {
        NetNorm::ActNorm => act_norm(width),
        NetNorm::Bias => width,
    };
    9.0 * channels_in * width + norm + width * width + norm + zero_conv(width, channels_out)
}

/// The residual net of RealNVP's couplings.
pub(super) fn residual_net(channels_in: f64, width: f64, channels_out: f64, blocks: f64) -> f64 {
    let norm = |channels: f64| moments(channels) + 2.0 * channels;
    // Direction, gain and bias of a convolution with weight normalization.
    let conv = |from: f64, to: f64, pixels: f64| pixels * from * to + 2.0 * to;
    let block = 2.0 * norm(width) + 2.0 * conv(width, width, 9.0) - width; // one without bias
    let skip = conv(width, width, 1.0);
    let (first, last) = (conv(2.0 * channels_in, width, 9.0), conv(width, channels_out, 1.0));
    norm(channels_in) + first + skip + blocks * (block + skip) + norm(width) + last
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use crate::coupling::ScaleMap;
    use crate::models::*;
    use crate::preprocess::LogitForm;
    use crate::record::Configuration;

    /// What is counted is what is built.
    #[track_caller]
    fn assert_counted<C: Configuration>(configuration: C) {
        let device = crate::backend::device();
        let model = configuration.build(&device).unwrap();
        assert_eq!(configuration.num_values(), model.num_params() as f64, "{}", C::NAME);
    }

    #[test]
    fn glow() {
        let config = || GlowConfig::new([3, 8, 4], 2, 3, 5);
        assert_counted(config());
        assert_counted(config().with_coupling(GlowCouplingKind::Additive));
        assert_counted(config().with_coupling(GlowCouplingKind::Affine(ScaleMap::Tanh)));
        for mixing in [GlowMixingKind::Reverse, GlowMixingKind::Shuffle, GlowMixingKind::Conv1x1Plu]
        {
            assert_counted(config().with_mixing(mixing));
        }
        assert_counted(config().with_net_norm(crate::conditioner::NetNorm::Bias));
        assert_counted(config().with_learned_top(false).with_conditional_split(false));
        assert_counted(GlowConfig::new([1, 8, 8], 3, 1, 2).with_logit(0.05));
        let of_classes = || config().with_num_classes(5);
        assert_counted(of_classes().with_learned_top(false));
        assert_counted(of_classes().with_class_splits(true));
        assert_counted(of_classes().with_class_splits(true).with_conditional_split(false));
    }

    #[test]
    fn real_nvp() {
        assert_counted(RealNvpConfig::new([3, 8, 4], 3, 5, 2));
        let config = RealNvpConfig::new([1, 4, 4], 1, 3, 1);
        assert_counted(config.with_batch_norm(false).with_logit(None, LogitForm::Code));
        for mask in [VectorMaskKind::Halves, VectorMaskKind::Alternating] {
            let config = RealNvpVectorConfig::new(5, 3, vec![4, 6]).with_mask(mask);
            assert_counted(config.clone().with_batch_norm(true));
            assert_counted(config.with_scale_map(ScaleMap::Exp));
        }
    }

    #[test]
    fn splines_and_autoregressive_layers() {
        for context in [0, 3] {
            for hidden in [vec![], vec![6, 4]] {
                let config = MafConfig::new(5, 3, hidden.clone()).with_context(context);
                assert_counted(config.clone().with_batch_norm(true));
                assert_counted(config.with_scale_map(ScaleMap::Tanh));
                let config = SplineFlowConfig::new(5, 3, hidden).with_context(context);
                assert_counted(config.clone());
                assert_counted(config.with_kind(SplineFlowKind::Autoregressive));
            }
        }
        assert_counted(ConditionalSplineFlowConfig::sbi(3, 2));
    }

    #[test]
    fn nice() {
        assert_counted(NiceConfig::new(7, vec![3, 4]).with_num_couplings(5));
        assert_counted(NiceConfig::new(2, vec![]));
    }

    #[test]
    fn sizes_that_no_memory_holds_are_refused_by_name() {
        let device = crate::backend::device();
        let error = GlowConfig::new([1, 4, 4], 1, 99_999_999_999, 2)
            .init(&mut StdRng::seed_from_u64(0), &device)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Glow: got num_steps 99999999999 asks for a Glow of 1.550e13 values, needs at most \
             2.74877906944e11 values; use smaller sizes"
        );
        for error in [
            GlowConfig::new([1, 4, 4], 1, 1, usize::MAX).validate().unwrap_err(),
            RealNvpConfig::new([1, 4, 4], 1, usize::MAX, 1).validate().unwrap_err(),
            RealNvpConfig::new([1, 4, 4], 1, 1, usize::MAX).validate().unwrap_err(),
            RealNvpConfig::new([1, usize::MAX, usize::MAX], 1, 1, 1).validate().unwrap_err(),
            NiceConfig::new(usize::MAX, vec![8]).validate().unwrap_err(),
            NiceConfig::new(4, vec![1 << 40, 1 << 40]).validate().unwrap_err(),
            RealNvpVectorConfig::new(2, usize::MAX, vec![8]).validate().unwrap_err(),
        ] {
            let text = error.to_string();
            let names = ["hidden", "num_blocks", "image_shape", "num_features", "num_couplings"];
            assert!(names.iter().any(|name| text.contains(name)), "{text}");
        }
    }
}
