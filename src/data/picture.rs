//! One picture: from the bytes of a file to equally sized 8-bit pixels.

use std::fs;
use std::io::{self, Cursor};
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use super::Images;
use super::preparation::{Channels, Crop};
use crate::{FlowError, Result};

/// The largest picture that is decoded, in pixels: a few kilobytes of PNG can claim to hold
/// gigabytes, and several pictures are decoded at once.
const MAX_PIXELS: u64 = 100_000_000;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What pictures of a folder are made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Treatment {
    pub(super) crop: Crop,
    pub(super) size: usize,
    pub(super) channels: Channels,
}

impl Treatment {
    pub(super) fn validate(&self) -> Result<()> {
        if self.size == 0 || self.size > 4096 {
            return Err(FlowError::config(
                "ImageFolder",
                "size",
                self.size,
                "1 to 4096",
                "32, 64 and 128 are usual",
            ));
        }
        if let Crop::Proportion { side, width, height } = self.crop
            && (side == 0 || side > width || side > height)
        {
            return Err(FlowError::config(
                "ImageFolder",
                "crop",
                format!("{side} of {width}x{height}"),
                "a side of at least 1 that is not larger than the picture",
                "Crop::CELEBA is 148 of 178x218",
            ));
        }
        Ok(())
    }

    /// Values of a prepared picture.
    pub(super) fn len(&self) -> usize {
        self.channels.count() * self.size * self.size
    }
}

/// Why a picture cannot be used.
#[derive(Debug)]
pub(super) struct Unusable {
    pub(super) reason: String,
    /// Whether the file could not be read, which may be otherwise another time; a picture that was
    /// read and is damaged stays so.
    pub(super) unread: bool,
}

/// Reads one JPEG or PNG picture as one image of `image_shape`, `[channels, height, width]` with one
/// channel or three: turned upright, laid over white, converted, cut and resized as
/// [`ImageFolder`](super::ImageFolder) does it to each of its pictures.
///
/// # Errors
/// - [`FlowError::Format`] if the picture is damaged or neither JPEG nor PNG;
/// - [`FlowError::Io`] if it cannot be read;
/// - [`FlowError::Config`] if a size or the crop cannot be used.
///
/// ```no_run
/// use burn_flows::data::{Crop, read_picture};
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let image = read_picture("face.jpg", [3, 64, 64], Crop::CELEBA)?;
/// assert_eq!(image.shape(), [1, 3, 64, 64]);
/// # Ok(())
/// # }
/// ```
pub fn read_picture(path: impl AsRef<Path>, image_shape: [usize; 3], crop: Crop) -> Result<Images> {
    let path = path.as_ref();
    let [num_channels, height, width] = image_shape;
    let channels = match num_channels {
        1 => Channels::Grey,
        3 => Channels::Rgb,
        _ => {
            return Err(FlowError::config(
                "read_picture",
                "channels",
                num_channels,
                "1 or 3",
                "a picture is grey or in colour",
            ));
        }
    };
    for size in [height, width] {
        Treatment { crop, size, channels }.validate()?;
    }
    let bytes = read(path).map_err(|error| {
        FlowError::io("read", path, error, "pass a JPEG or PNG picture that can be read")
    })?;
    let picture = decode(&bytes).map_err(|reason| {
        FlowError::format(path, reason, "a whole JPEG or PNG picture", "pass another picture")
    })?;
    let mut pixels = vec![0; num_channels * height * width];
    prepare(picture, crop, channels, [height, width], &mut pixels);
    Images::new(pixels, [1, num_channels, height, width], None)
}

/// Reads and prepares the picture at `path` into `pixels`, `[channels, size, size]`.
pub(super) fn load(path: &Path, treatment: Treatment, pixels: &mut [u8]) -> Result<(), Unusable> {
    let bytes = read(path)
        .map_err(|error| Unusable { reason: format!("cannot be read: {error}"), unread: true })?;
    let picture = decode(&bytes).map_err(|reason| Unusable { reason, unread: false })?;
    let Treatment { crop, size, channels } = treatment;
    prepare(picture, crop, channels, [size; 2], pixels);
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    // A pipe would wait for ever.
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("{} bytes are too many", metadata.len())));
    }
    fs::read(path)
}

/// The picture in `bytes`, turned upright, or what is wrong with it.
fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    if bytes.is_empty() {
        return Err("an empty file".into());
    }
    let format = image::guess_format(bytes).ok();
    match format {
        Some(ImageFormat::Jpeg) => check_jpeg_is_whole(bytes)?,
        Some(ImageFormat::Png) => {}
        _ => return Err("neither JPEG nor PNG".into()),
    }
    let text = |error: image::ImageError| error.to_string().trim_end().to_string();
    let mut reader = ImageReader::new(Cursor::new(bytes));
    if let Some(format) = format {
        reader.set_format(format);
    }
    let mut decoder = reader.into_decoder().map_err(text)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS {
        return Err(format!("{width}x{height} pixels, not 1 to {MAX_PIXELS}"));
    }
    if pixels > most_pixels(format, bytes.len()) {
        return Err(format!("{width}x{height} pixels, more than {} bytes can hold", bytes.len()));
    }
    // Pictures without EXIF data, or with data that are damaged, are upright.
    let orientation = decoder.orientation().map_err(text)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(text)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// The most pixels that a file of so many bytes can hold: no memory is made ready for a header that
/// claims more.
fn most_pixels(format: Option<ImageFormat>, len: usize) -> u64 {
    let of_a_byte = match format {
        // A bit for a block of 8x8 pixels, and a channel of half the size has the other blocks.
        Some(ImageFormat::Jpeg) => 8 * 64 * 2,
        // Deflate makes 1032 bytes of one at the most, and each can be eight pixels.
        _ => 1032 * 8,
    };
    of_a_byte * len as u64
}

/// Whether a JPEG file goes on to its end marker, in marker segments and scans that are well formed.
///
/// The decoder fills what is missing with grey, which would go into the training unseen.
fn check_jpeg_is_whole(bytes: &[u8]) -> Result<(), String> {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    /// Markers that may stand inside a scan: a stuffed zero and the eight restarts.
    const IN_SCAN: [std::ops::RangeInclusive<u8>; 2] = [0x00..=0x00, 0xd0..=0xd7];

    let truncated = || "a truncated JPEG file".to_string();
    let byte = |at: usize| bytes.get(at).copied().ok_or_else(truncated);

    let mut at = 2; // after the start marker, which told the format
    loop {
        if byte(at)? != 0xff {
            return Err(format!("a damaged JPEG file (no marker at byte {at})"));
        }
        while byte(at)? == 0xff {
            at += 1; // any number of fill bytes
        }
        let marker = byte(at)?;
        at += 1;
        if marker == END_OF_IMAGE {
            return Ok(());
        }
        // The markers with a segment: frame, tables, application data, comments, scan.
        if !(0xc0..=0xfe).contains(&marker) || (0xd0..=0xd8).contains(&marker) {
            return Err(format!("a damaged JPEG file (marker 0x{marker:02x} before byte {at})"));
        }
        let length = usize::from(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
        at += length.max(2);
        if marker == START_OF_SCAN {
            while !(byte(at)? == 0xff
                && byte(at + 1)? != 0xff
                && !IN_SCAN.iter().any(|range| range.contains(&bytes[at + 1])))
            {
                at += 1;
            }
        }
    }
}

fn prepare(
    picture: DynamicImage,
    crop: Crop,
    channels: Channels,
    sides: [usize; 2],
    pixels: &mut [u8],
) {
    let rgb = over_white(picture);
    match channels {
        Channels::Rgb => {
            let resized = crop_and_resize(&rgb, crop, sides);
            let plane = sides[0] * sides[1];
            for (index, pixel) in resized.pixels().enumerate() {
                for (channel, &value) in pixel.0.iter().enumerate() {
                    pixels[channel * plane + index] = value;
                }
            }
        }
        Channels::Grey => {
            let grey = GrayImage::from_fn(rgb.width(), rgb.height(), |x, y| {
                image::Luma([luma(rgb.get_pixel(x, y).0)])
            });
            pixels.copy_from_slice(&crop_and_resize(&grey, crop, sides));
        }
    }
}

/// As RGB; transparent parts show white, as on a page.
fn over_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [red, green, blue, alpha] = rgba.get_pixel(x, y).0.map(u32::from);
        let blend = |value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([blend(red), blend(green), blend(blue)])
    })
}

/// Luma of ITU-R BT.601 in 16-bit fixed point with rounding; the weights add up to 2^16, so grey
/// stays as it is. Pillow has the same numbers (`Convert.c`, `L24`).
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = 19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue);
    ((sum + (1 << 15)) >> 16) as u8
}

/// Bilinear with antialiasing: the triangle grows with the reduction, as Pillow's `BILINEAR` and
/// torchvision's `Resize` do it.
fn crop_and_resize<P>(
    picture: &image::ImageBuffer<P, Vec<u8>>,
    crop: Crop,
    [new_height, new_width]: [usize; 2],
) -> image::ImageBuffer<P, Vec<u8>>
where
    P: image::Pixel<Subpixel = u8> + 'static,
{
    let [x, y, width, height] = crop.area(picture.width(), picture.height());
    let [new_width, new_height] = [new_width as u32, new_height as u32];
    let part = imageops::crop_imm(picture, x, y, width, height);
    // `resize` goes down the columns first. Where that makes them longer and there are many, a picture of
    // one row would become larger than memory: along the rows before.
    if new_height > height && new_width < width {
        let narrow = imageops::resize(&*part, new_width, height, FilterType::Triangle);
        return imageops::resize(&narrow, new_width, new_height, FilterType::Triangle);
    }
    imageops::resize(&*part, new_width, new_height, FilterType::Triangle)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, Rgb, Rgba};

    use super::*;

    /// A picture that Pillow made, or made of one; `make_pictures.py` is beside them.
    pub(in crate::data) fn testdata(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata").join(name)
    }

    pub(in crate::data) fn png(picture: &RgbImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    pub(in crate::data) fn jpeg(picture: &RgbImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (width, height) = picture.dimensions();
        JpegEncoder::new_with_quality(&mut bytes, 95)
            .encode(picture, width, height, ExtendedColorType::Rgb8)
            .unwrap();
        bytes
    }

    /// Red and green over blue and white.
    pub(in crate::data) fn quarters(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| match (x < width / 2, y < height / 2) {
            (true, true) => Rgb([255, 0, 0]),
            (false, true) => Rgb([0, 255, 0]),
            (true, false) => Rgb([0, 0, 255]),
            (false, false) => Rgb([255, 255, 255]),
        })
    }

    fn prepared(bytes: &[u8], crop: Crop, size: usize, channels: Channels) -> Vec<u8> {
        let mut pixels = vec![0; channels.count() * size * size];
        prepare(decode(bytes).unwrap(), crop, channels, [size; 2], &mut pixels);
        pixels
    }

    /// The pixels that Pillow's result holds, channels first.
    fn expected(name: &str, channels: Channels) -> Vec<u8> {
        let picture = image::open(testdata(name)).unwrap();
        match channels {
            Channels::Grey => picture.into_luma8().into_raw(),
            Channels::Rgb => {
                let rgb = picture.into_rgb8();
                (0..3).flat_map(|c| rgb.pixels().map(move |pixel| pixel.0[c])).collect()
            }
        }
    }

    /// Within one grey level of Pillow on average (the JPEG decoders differ a little), and nowhere
    /// far off, which a shift by half a pixel at the drawing's edges would be.
    fn assert_like_pillow(name: &str, result: &str, crop: Crop, size: usize, channels: Channels) {
        const MEAN: f64 = 0.5;
        const MAX: u8 = 6;
        let ours = prepared(&fs::read(testdata(name)).unwrap(), crop, size, channels);
        let theirs = expected(result, channels);
        assert_eq!(ours.len(), theirs.len());
        let differences = || ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
        let mean = differences().map(f64::from).sum::<f64>() / ours.len() as f64;
        let max = differences().max().unwrap();
        assert!(mean <= MEAN && max <= MAX, "{result}: mean {mean}, max {max}");
    }

    #[test]
    fn crop_and_resize_are_pillows() {
        use Channels::{Grey, Rgb};
        assert_like_pillow("full.jpg", "full_32.png", Crop::CELEBA, 32, Rgb);
        assert_like_pillow("full.jpg", "full_64.png", Crop::CELEBA, 64, Rgb);
        assert_like_pillow("full.jpg", "full_128.png", Crop::CELEBA, 128, Rgb);
        assert_like_pillow("full.jpg", "full_grey_64.png", Crop::CELEBA, 64, Grey);
        assert_like_pillow("full.jpg", "full_square_64.png", Crop::Square, 64, Rgb);
        assert_like_pillow("half.jpg", "half_64.png", Crop::CELEBA, 64, Rgb);
        assert_like_pillow("half.jpg", "half_128.png", Crop::CELEBA, 128, Rgb);
    }

    #[test]
    fn every_kind_of_pixel_is_converted_as_pillow_does() {
        use Channels::Rgb;
        assert_like_pillow("cmyk.jpg", "cmyk_48.png", Crop::Whole, 48, Rgb);
        assert_like_pillow("grey.jpg", "grey_48.png", Crop::Whole, 48, Rgb);
        assert_like_pillow("progressive.jpg", "progressive_48.png", Crop::Whole, 48, Rgb);
        assert_like_pillow("palette.png", "palette_48.png", Crop::Whole, 48, Rgb);
        assert_like_pillow("alpha.png", "alpha_48.png", Crop::Whole, 48, Rgb);
    }

    #[test]
    fn one_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        fs::write(&path, png(&quarters(8, 4))).unwrap();
        // Of its own size it stays as it is, red, green and blue one after another.
        let whole = read_picture(&path, [3, 4, 8], Crop::Whole).unwrap();
        assert_eq!(whole.shape(), [1, 3, 4, 8]);
        let [red, blue] = [&whole.image(0)[..32], &whole.image(0)[64..]];
        assert_eq!(red[..8], [255, 255, 255, 255, 0, 0, 0, 0]);
        assert_eq!((red[31], blue[0], blue[24], blue[31]), (255, 0, 255, 255));
        let grey = read_picture(&path, [1, 4, 8], Crop::Whole).unwrap();
        let [r, g, b] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]].map(luma);
        assert_eq!([0, 7, 24, 31].map(|place| grey.image(0)[place]), [r, g, b, 255]);
        // Height before width.
        assert_eq!(read_picture(&path, [3, 2, 5], Crop::Whole).unwrap().shape(), [1, 3, 2, 5]);
        // As the folder's loader prepares it.
        let pictures = super::super::ImageFolder::new(folder.path(), 3).load().unwrap();
        assert_eq!(read_picture(&path, [3, 3, 3], Crop::Square).unwrap(), pictures.images);

        let error = |path: &Path, shape| {
            let error = read_picture(path, shape, Crop::Whole).unwrap_err().to_string();
            error.replace(&folder.path().display().to_string(), "DIR")
        };
        assert_eq!(
            error(&folder.path().join("none.png"), [1, 2, 2]),
            "cannot read DIR/none.png: No such file or directory (os error 2); \
             pass a JPEG or PNG picture that can be read"
        );
        assert_eq!(
            error(&path, [2, 2, 2]),
            "read_picture: channels is 2, but must be 1 or 3; a picture is grey or in colour"
        );
        assert!(error(&path, [1, 2, 0]).contains("size is 0"));
        fs::write(&path, "text").unwrap();
        assert_eq!(
            error(&path, [1, 2, 2]),
            "DIR/wide.png: neither JPEG nor PNG, expected a whole JPEG or PNG picture; \
             pass another picture"
        );
    }

    #[test]
    fn areas() {
        let celeba = |width, height| Crop::CELEBA.area(width, height);
        assert_eq!(celeba(178, 218), [15, 35, 148, 148]);
        // Halves go to the even neighbour: 7.5 to 8 and 17.5 to 18.
        assert_eq!(celeba(89, 109), [8, 18, 74, 74]);
        assert_eq!(celeba(1024, 1024), [164, 164, 695, 695]);
        assert_eq!(celeba(1, 1), [0, 0, 1, 1]);
        assert_eq!(celeba(1000, 1), [500, 0, 1, 1]);
        assert_eq!(Crop::Square.area(5, 9), [0, 2, 5, 5]);
        assert_eq!(Crop::Square.area(9, 5), [2, 0, 5, 5]);
        assert_eq!(Crop::Whole.area(9, 5), [0, 0, 9, 5]);
        for width in 1..60 {
            for height in 1..60 {
                for crop in [Crop::CELEBA, Crop::Square, Crop::Whole] {
                    let [x, y, w, h] = crop.area(width, height);
                    assert!(w >= 1 && h >= 1 && x + w <= width && y + h <= height);
                }
            }
        }
    }

    #[test]
    fn channels_come_first_and_transparent_is_white() {
        let mut rgba = image::RgbaImage::new(2, 1);
        rgba.put_pixel(0, 0, Rgba([10, 20, 30, 255]));
        rgba.put_pixel(1, 0, Rgba([10, 20, 30, 0]));
        let mut bytes = Cursor::new(Vec::new());
        rgba.write_to(&mut bytes, ImageFormat::Png).unwrap();
        let picture = decode(bytes.get_ref()).unwrap();
        assert_eq!(over_white(picture).into_raw(), [10, 20, 30, 255, 255, 255]);

        let pixels = prepared(&png(&quarters(2, 2)), Crop::Whole, 2, Channels::Rgb);
        assert_eq!(pixels, [255, 0, 0, 255, 0, 255, 0, 255, 0, 0, 255, 255]);
        let pixels = prepared(&png(&quarters(2, 2)), Crop::Whole, 2, Channels::Grey);
        assert_eq!(pixels, [76, 150, 29, 255]);
        assert!((0..=255).all(|value| luma([value; 3]) == value));
    }

    #[test]
    fn pictures_of_16_bits_keep_their_brightness() {
        let picture = image::ImageBuffer::<image::Luma<u16>, _>::from_fn(4, 1, |x, _| {
            image::Luma([[0_u16, 257, 128 * 257, u16::MAX][x as usize]])
        });
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        let grey = over_white(decode(bytes.get_ref()).unwrap());
        assert_eq!(grey.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>(), [0, 1, 128, 255]);
    }

    /// `jpeg` with an EXIF orientation in front.
    fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08".to_vec();
        // One entry: tag 0x0112, type 3 (16 bits), one value.
        exif.extend([0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
        let length = (exif.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
    }

    #[test]
    fn exif_orientation_is_undone() {
        let stored = jpeg(&quarters(32, 16));
        // Where the quarters red, green, blue, white go: left to right, top to bottom.
        let upright = [
            "rgbw", "grwb", "wbgr", "bwrg", // 1 to 4
            "rbgw", "brwg", "wgbr", "gwrb", // 5 to 8
        ];
        for (orientation, colours) in (1..).zip(upright) {
            let picture = decode(&with_orientation(&stored, orientation)).unwrap().into_rgb8();
            let (width, height) = picture.dimensions();
            assert_eq!((width, height), if orientation < 5 { (32, 16) } else { (16, 32) });
            let colour = |(x, y)| {
                let pixel = picture.get_pixel(x * width / 4, y * height / 4);
                match pixel.0.map(|value| value >= 200) {
                    [true, true, true] => 'w',
                    [true, ..] => 'r',
                    [_, true, _] => 'g',
                    _ => 'b',
                }
            };
            let seen: String = [(1, 1), (3, 1), (1, 3), (3, 3)].map(colour).iter().collect();
            assert_eq!(seen, colours, "orientation {orientation}");
        }
        // Not one of the eight: upright.
        assert!(decode(&with_orientation(&stored, 77)).is_ok());
    }

    #[test]
    fn files_that_are_no_pictures() {
        let error = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert_eq!(error(b""), "an empty file");
        assert_eq!(error(b"not a picture"), "neither JPEG nor PNG");
        assert_eq!(error(b"GIF89a\x01\0\x01\0"), "neither JPEG nor PNG");
        assert_eq!(error(b"\xff\xd8\xff"), "a truncated JPEG file");
    }

    #[test]
    fn every_truncation_is_seen() {
        let picture = quarters(24, 16);
        let progressive = fs::read(testdata("progressive.jpg")).unwrap();
        for whole in [png(&picture), jpeg(&picture), progressive] {
            assert!(decode(&whole).is_ok());
            for len in 0..whole.len() {
                // The last chunk of a PNG file has no pixels in it.
                if whole.starts_with(b"\x89PNG") && len >= whole.len() - 12 {
                    continue;
                }
                assert!(decode(&whole[..len]).is_err(), "{len} of {} bytes decoded", whole.len());
            }
            // What follows the end is no part of the picture.
            assert!(decode(&[&whole[..], b"more"].concat()).is_ok());
        }
    }

    #[test]
    fn damaged_jpeg_structure_is_seen() {
        let whole = jpeg(&quarters(24, 16));
        let damaged = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            check_jpeg_is_whole(&bytes)
        };
        assert_eq!(damaged(2, 0x00).unwrap_err(), "a damaged JPEG file (no marker at byte 2)");
        assert_eq!(
            damaged(3, 0x02).unwrap_err(),
            "a damaged JPEG file (marker 0x02 before byte 4)"
        );
        // A segment that claims more than there is.
        assert_eq!(damaged(4, 0xff).unwrap_err(), "a truncated JPEG file");
    }

    #[test]
    fn no_damage_makes_the_decoder_panic() {
        use rand::RngExt;
        let picture = quarters(24, 16);
        let progressive = fs::read(testdata("progressive.jpg")).unwrap();
        let mut rng = crate::data::random_for(1, crate::data::streams::USER, 0);
        for whole in [png(&picture), jpeg(&picture), progressive] {
            for _ in 0..300 {
                let mut bytes = whole.clone();
                for _ in 0..rng.random_range(1..5) {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
                let _ = decode(&bytes);
            }
        }
    }

    /// The first chunk of a PNG file, with a checksum that is right.
    fn png_header(width: u32, height: u32) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend(width.to_be_bytes());
        chunk.extend(height.to_be_bytes());
        chunk.extend([8, 2, 0, 0, 0]);
        let mut sum = flate2::Crc::new();
        sum.update(&chunk);
        [b"\x89PNG\r\n\x1a\n\0\0\0\x0d", &chunk[..], &sum.sum().to_be_bytes()].concat()
    }

    #[test]
    fn huge_pictures_are_refused_before_memory_is_asked_for() {
        let mut bytes = png_header(60_000, 60_000);
        bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        assert_eq!(decode(&bytes).unwrap_err(), "60000x60000 pixels, not 1 to 100000000");
        // What the bytes cannot hold is less.
        let mut bytes = png_header(9_000, 9_000);
        bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let text = format!("9000x9000 pixels, more than {} bytes can hold", bytes.len());
        assert_eq!(decode(&bytes).unwrap_err(), text);
        let mut bytes = jpeg(&quarters(8, 8));
        let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bytes[frame + 5..frame + 9].copy_from_slice(&[0x20, 0, 0x20, 0]);
        let text = format!("8192x8192 pixels, more than {} bytes can hold", bytes.len());
        assert_eq!(decode(&bytes).unwrap_err(), text);
        // Of one colour, they are as many as a format can put into its bytes.
        for side in [64, 1000] {
            let white = RgbImage::from_pixel(side, side, Rgb([255; 3]));
            assert!(decode(&png(&white)).is_ok() && decode(&jpeg(&white)).is_ok());
        }
    }

    /// Its rows are shortened before its columns are made longer: 64 times its size would not fit.
    #[test]
    fn a_row_becomes_a_square() {
        let row = RgbImage::from_fn(90_000, 1, |x, _| Rgb([(x / 30_000 * 100) as u8; 3]));
        let pixels = prepared(&png(&row), Crop::Whole, 3, Channels::Grey);
        // The triangle reaches into the neighbouring thirds.
        assert_eq!(pixels, [14, 100, 186].repeat(3));
        let column = RgbImage::from_fn(1, 90_000, |_, y| Rgb([(y / 30_000 * 100) as u8; 3]));
        let pixels = prepared(&png(&column), Crop::Whole, 3, Channels::Grey);
        assert_eq!(pixels, [14, 14, 14, 100, 100, 100, 186, 186, 186]);
    }

    #[test]
    fn unread_and_damaged_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let treatment = Treatment { crop: Crop::Whole, size: 2, channels: Channels::Grey };
        let result = |path: &Path| load(path, treatment, &mut [0; 4]).unwrap_err();
        let missing = result(&folder.path().join("missing.jpg"));
        assert!(missing.unread);
        assert_eq!(missing.reason, "cannot be read: No such file or directory (os error 2)");
        let not_a_file = result(folder.path());
        assert!(not_a_file.unread);
        assert_eq!(not_a_file.reason, "cannot be read: not a file");
        let empty = folder.path().join("empty.jpg");
        fs::write(&empty, "").unwrap();
        assert!(!result(&empty).unread);
    }

    #[test]
    fn sixteen_bits_are_reduced_to_the_upper_eight() {
        use image::{DynamicImage, ImageBuffer, Luma, LumaA, Pixel};

        fn of<P>(pixel: P) -> DynamicImage
        where
            P: Pixel<Subpixel = u16> + 'static,
            DynamicImage: From<ImageBuffer<P, Vec<u16>>>,
        {
            ImageBuffer::from_pixel(4, 4, pixel).into()
        }
        let encoded = |picture: DynamicImage| {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        for (value, expected) in
            [(0, 0), (0x8080, 0x80), (0x00ff, 1), (0xfeff, 0xfe), (0xffff, 255)]
        {
            let pictures = [
                of(Luma([value])),
                of(LumaA([value, 0xffff])),
                of(Rgb([value; 3])),
                of(Rgba([value, value, value, 0xffff])),
            ];
            for picture in pictures {
                let color = picture.color();
                let bytes = encoded(picture);
                for channels in [Channels::Rgb, Channels::Grey] {
                    let pixels = prepared(&bytes, Crop::Whole, 2, channels);
                    assert!(
                        pixels.iter().all(|&p| p == expected),
                        "{color:?} {value:x} {pixels:?}"
                    );
                }
            }
        }
        // Half transparent black over white, at 16 bits as at 8.
        let bytes = encoded(of(LumaA([0, 0x8080])));
        assert_eq!(prepared(&bytes, Crop::Whole, 1, Channels::Grey), [127]);
    }
}
