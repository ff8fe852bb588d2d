//! Splines whose tails differ from channel to channel.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{RationalQuadratic, RationalQuadraticConfig, SplineTails, Transform};
use crate::constants;
use crate::error::{FlowError, Result};
use crate::record::Setting;

/// Rational-quadratic splines, each channel with [`SplineTails`] of its own: for variables of which some
/// are angles and some are not.
///
/// Every channel has `3 K + 1` numbers, in the order of [`RationalQuadratic`]'s: `K` widths, `K` heights
/// and `K + 1` slopes. Of the slopes, identity tails use those between the ends, circular ones all but the
/// last, straight ones all.
///
/// Source: as [`RationalQuadratic`]'s.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::coupling::{ChannelSplines, Elementwise, RationalQuadraticConfig, SplineTails};
///
/// let device = burn_flows::backend::device();
/// let config = RationalQuadraticConfig::new(4, 1.0);
/// let splines = ChannelSplines::new(config, vec![SplineTails::Circular, SplineTails::Identity])?;
/// let splines = Elementwise::new(splines, 2, &device)?;
/// // From one end of the circle on it goes on at the other.
/// let (z, _) = splines.forward(Tensor::<2>::from_data([[1.5, 1.5]], &device));
/// let z = z.try_into_vec_as::<f32>().unwrap();
/// assert!((z[0] + 0.5).abs() < 1e-5 && z[1] == 1.5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct ChannelSplines {
    /// One for each of [`ALL_TAILS`], all of the same bins.
    splines: Vec<RationalQuadratic>,
    tails: Setting<Vec<SplineTails>>,
}

const ALL_TAILS: [SplineTails; 3] =
    [SplineTails::Identity, SplineTails::Linear, SplineTails::Circular];

/// The channels of one kind of tails: their places among those at hand, and the numbers that they use of
/// `count` channels with `bins` bins.
struct Group<'a> {
    spline: &'a RationalQuadratic,
    places: Vec<usize>,
    numbers: Vec<usize>,
}

impl ChannelSplines {
    /// Splines by `config`, whose tails are not used, with the given tails for each channel.
    ///
    /// # Errors
    /// As [`RationalQuadraticConfig::init`]; if there is no channel.
    pub fn new(config: RationalQuadraticConfig, tails: Vec<SplineTails>) -> Result<Self> {
        if tails.is_empty() {
            let (got, needed) = ("empty", "one for each channel");
            let advice = "give the tails of every channel that is transformed";
            return Err(FlowError::config("ChannelSplines", "tails", got, needed, advice));
        }
        let splines = ALL_TAILS.into_iter().map(|tails| config.with_tails(tails).init());
        Ok(Self { splines: splines.collect::<Result<_>>()?, tails: tails.into() })
    }

    /// The tails of each channel.
    pub fn tails(&self) -> &[SplineTails] {
        &self.tails
    }

    fn bins(&self) -> usize {
        self.splines[0].config().num_bins
    }

    fn groups(&self, channels: &[usize]) -> Vec<Group<'_>> {
        let (bins, count) = (self.bins(), channels.len());
        let groups = ALL_TAILS.iter().zip(&self.splines).map(|(tails, spline)| {
            let has_them = |&place: &usize| self.tails[channels[place]] == *tails;
            let places: Vec<usize> = (0..count).filter(has_them).collect();
            let kinds: Vec<usize> = match tails {
                SplineTails::Identity => (0..2 * bins).chain(2 * bins + 1..3 * bins).collect(),
                SplineTails::Linear => (0..3 * bins + 1).collect(),
                SplineTails::Circular => (0..3 * bins).collect(),
            };
            let numbers =
                kinds.iter().flat_map(|kind| places.iter().map(move |at| kind * count + at));
            Group { spline, numbers: numbers.collect(), places }
        });
        groups.filter(|group| !group.places.is_empty()).collect()
    }

    /// The results of `map` for the channels of each kind of tails, put together in the channels' order.
    fn by_group<const D: usize, const N: usize>(
        &self,
        channels: &[usize],
        x: Tensor<D>,
        params: Tensor<D>,
        map: impl Fn(&RationalQuadratic, Tensor<D>, Tensor<D>) -> [Tensor<D>; N],
    ) -> [Tensor<D>; N] {
        assert!(
            x.dims()[1] == channels.len()
                && params.dims()[1] == (3 * self.bins() + 1) * channels.len(),
            "ChannelSplines: got values of shape {:?} and numbers of shape {:?} for {} channels, {} \
             numbers each",
            x.dims(),
            params.dims(),
            channels.len(),
            3 * self.bins() + 1
        );
        let device = x.device().without_autodiff();
        let select = |from: &Tensor<D>, places: &[usize]| {
            from.clone().select(1, constants::places(places.iter().copied(), &device))
        };
        let groups = self.groups(channels);
        let mut order = Vec::new();
        let mut parts: [Vec<Tensor<D>>; N] = std::array::from_fn(|_| Vec::new());
        for group in groups {
            let of_group =
                map(group.spline, select(&x, &group.places), select(&params, &group.numbers));
            for (parts, part) in parts.iter_mut().zip(of_group) {
                parts.push(part);
            }
            order.extend(group.places);
        }
        let mut back = vec![0; order.len()];
        for (at, &place) in order.iter().enumerate() {
            back[place] = at;
        }
        parts.map(|parts| select(&Tensor::cat(parts, 1), &back))
    }

    fn all(&self) -> Vec<usize> {
        (0..self.tails.len()).collect()
    }
}

impl Transform for ChannelSplines {
    fn params_per_channel(&self) -> usize {
        3 * self.bins() + 1
    }

    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>) {
        let [z, log_slope] = self.by_group(&self.all(), x, params, |spline, x, params| {
            let (z, log_slope) = spline.forward(x, params);
            [z, log_slope.expect("a spline has a slope")]
        });
        (z, Some(log_slope))
    }

    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D> {
        self.inverse_of(&self.all(), z, params)
    }

    fn inverse_of<const D: usize>(
        &self,
        channels: &[usize],
        z: Tensor<D>,
        params: Tensor<D>,
    ) -> Tensor<D> {
        let [x] =
            self.by_group(channels, z, params, |spline, z, params| [spline.inverse(z, params)]);
        x
    }
}
