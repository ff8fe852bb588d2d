//! IDX, the file format of MNIST: a magic number, the sizes of the axes, then the values.
//!
//! | bytes | content |
//! |---|---|
//! | 0, 1 | zero |
//! | 2 | type of the values; `0x08`, unsigned bytes, is the one read here |
//! | 3 | number of axes |
//! | 4 an axis | its size, big-endian |
//! | the rest | the values, row-major |
//!
//! Source: <http://yann.lecun.com/exdb/mnist/>, *the IDX file format*.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{FlowError, Result};

/// The type byte of unsigned bytes.
const TYPE_U8: u8 = 0x08;

/// The first two bytes of a gzip stream (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

const NEEDED: &str = "an IDX file of unsigned bytes";
const DAMAGED: &str = "the file is damaged: delete it and download it again";

/// The content of an IDX file of unsigned bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct IdxArray {
    /// The size of each axis, at least one axis.
    pub dims: Vec<usize>,
    /// The values, row-major; as many as the product of `dims`.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for IdxArray {
    /// The sizes alone: the values of a data set would fill the terminal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdxArray").field("dims", &self.dims).finish_non_exhaustive()
    }
}

/// Reads an IDX file of unsigned bytes, plain or compressed with gzip.
///
/// Compression is told by the first bytes of the file, not by its name. The memory used follows
/// what the file really holds, whatever its header claims.
///
/// # Errors
/// - [`FlowError::Io`] if the file cannot be opened or read;
/// - [`FlowError::Format`] if it is a folder, damaged or not gzip to the end, has another magic
///   number or value type, no axis, fewer values than its header says, or more bytes.
pub fn read(path: impl AsRef<Path>) -> Result<IdxArray> {
    let path = path.as_ref();
    let io_error =
        |source| FlowError::io("read", path, source, "pass the path of a readable IDX file");
    let mut file = File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.is_dir() {
        return Err(FlowError::format(path, "a folder", NEEDED, "pass the path of the file"));
    }

    let mut start = Vec::new();
    Read::by_ref(&mut file).take(2).read_to_end(&mut start).map_err(io_error)?;
    let compressed = start == GZIP_MAGIC;
    let whole = io::Cursor::new(start).chain(io::BufReader::new(file));
    if compressed { parse(path, MultiGzDecoder::new(whole)) } else { parse(path, whole) }
}

fn parse(path: &Path, mut content: impl Read) -> Result<IdxArray> {
    let bad =
        |got: String, needed: &str, advice: &str| Err(FlowError::format(path, got, needed, advice));

    let magic = read_up_to(path, &mut content, 4)?;
    let &[zero_0, zero_1, value_type, num_dims] = magic.as_slice() else {
        return bad(format!("{} bytes in all", magic.len()), NEEDED, DAMAGED);
    };
    if (zero_0, zero_1) != (0, 0) {
        return bad(
            format!(
                "the magic number 0x{:08x}",
                u32::from_be_bytes([zero_0, zero_1, value_type, num_dims])
            ),
            "0x0000 and then a type and a number of dimensions, as every IDX file has",
            "pass an IDX file, plain or compressed with gzip",
        );
    }
    if value_type != TYPE_U8 {
        return bad(
            format!("values of type 0x{value_type:02x}{}", type_name(value_type)),
            "0x08 (unsigned bytes)",
            "convert the values to unsigned bytes",
        );
    }
    if num_dims == 0 {
        return bad("0 dimensions".into(), "at least 1", DAMAGED);
    }

    let header = read_up_to(path, &mut content, 4 * u64::from(num_dims))?;
    if header.len() < 4 * usize::from(num_dims) {
        return bad(
            format!("{} bytes in all", 4 + header.len()),
            &format!(
                "a header of {} bytes for {num_dims} dimensions",
                4 + 4 * usize::from(num_dims)
            ),
            DAMAGED,
        );
    }
    let sizes: Vec<u32> = header
        .chunks_exact(4)
        .map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]))
        .collect();
    let shape = || sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(" x ");
    // Below isize::MAX, the most that one allocation can hold, and so below u64::MAX too.
    let num_values = sizes
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?))
        .filter(|&product| isize::try_from(product).is_ok());
    let Some(num_values) = num_values else {
        return bad(
            format!("a header of {} values", shape()),
            "no more values than memory can hold",
            DAMAGED,
        );
    };

    // One byte more than is needed tells a file that goes on from one that ends; it also makes the
    // gzip decoder reach the end of its stream, where the checksum is compared.
    let data = read_up_to(path, &mut content, num_values as u64 + 1)?;
    if data.len() < num_values {
        return bad(
            format!("{} bytes of values", data.len()),
            &format!("{num_values} ({})", shape()),
            "the file is truncated: delete it and download it again",
        );
    }
    if data.len() > num_values {
        return bad(
            format!("more than {num_values} bytes of values"),
            &format!("{num_values} ({})", shape()),
            DAMAGED,
        );
    }
    Ok(IdxArray { dims: sizes.iter().map(|&size| size as usize).collect(), data })
}

/// At most `limit` bytes, fewer only where the content ends. The buffer grows with what is read
/// and not with `limit`, which comes from the file.
fn read_up_to(path: &Path, content: &mut impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match content.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => FlowError::format(
                path,
                "compressed data that end too early",
                "a whole gzip file",
                "the file is truncated: delete it and download it again",
            ),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => FlowError::format(
                path,
                format!("damaged compressed data ({error})"),
                "a gzip file and nothing after it",
                DAMAGED,
            ),
            _ => FlowError::io("read", path, error, "check the disk and the file's permissions"),
        }),
    }
}

/// The name of a value type in brackets, if the format has one for it.
fn type_name(value_type: u8) -> &'static str {
    match value_type {
        0x09 => " (signed bytes)",
        0x0b => " (16-bit integers)",
        0x0c => " (32-bit integers)",
        0x0d => " (32-bit floats)",
        0x0e => " (64-bit floats)",
        _ => "",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// The bytes of an IDX file.
    pub(in crate::data) fn idx_bytes(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, TYPE_U8, dims.len() as u8];
        bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
        bytes.extend_from_slice(values);
        bytes
    }

    pub(in crate::data) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Reads `bytes` from a file; an error comes without the path in front.
    fn read_bytes(bytes: &[u8]) -> Result<IdxArray, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        read(&path).map_err(|error| {
            assert!(matches!(error, FlowError::Format { .. }), "{error:?}");
            let text = error.to_string();
            text.strip_prefix(&format!("{}: ", path.display())).unwrap().to_string()
        })
    }

    fn error(bytes: &[u8]) -> String {
        read_bytes(bytes).unwrap_err()
    }

    /// 2 x 3 values whose bytes do not compress to nothing.
    fn example() -> Vec<u8> {
        idx_bytes(&[2, 3], &[1, 20, 255, 0, 7, 9])
    }

    #[test]
    fn reads_plain_and_gzip_alike() {
        for bytes in [example(), gzip(&example())] {
            let array = read_bytes(&bytes).unwrap();
            assert_eq!(array.dims, [2, 3]);
            assert_eq!(array.data, [1, 20, 255, 0, 7, 9]);
            assert_eq!(format!("{array:?}"), "IdxArray { dims: [2, 3], .. }");
        }
    }

    #[test]
    fn compression_is_told_by_content_not_name() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain.gz");
        let packed = folder.path().join("packed");
        std::fs::write(&plain, example()).unwrap();
        std::fs::write(&packed, gzip(&example())).unwrap();
        assert_eq!(read(plain).unwrap(), read(packed).unwrap());
    }

    #[test]
    fn a_gzip_file_of_two_members_is_one_content() {
        let bytes = example();
        let members = [gzip(&bytes[..7]), gzip(&bytes[7..])].concat();
        assert_eq!(read_bytes(&members).unwrap().data, [1, 20, 255, 0, 7, 9]);
    }

    #[test]
    fn an_axis_of_size_zero_has_no_values() {
        assert_eq!(read_bytes(&idx_bytes(&[0, 28, 28], &[])).unwrap().dims, [0, 28, 28]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = example();
        let packed = gzip(&bytes);
        for len in 0..bytes.len() {
            assert!(read_bytes(&bytes[..len]).is_err(), "{len} of {} bytes read", bytes.len());
        }
        for len in 0..packed.len() {
            assert!(read_bytes(&packed[..len]).is_err(), "{len} of {} bytes read", packed.len());
        }
    }

    #[test]
    fn truncated_files() {
        let damaged = "the file is damaged: delete it and download it again";
        let truncated = "the file is truncated: delete it and download it again";
        assert_eq!(
            error(&[]),
            format!("0 bytes in all, expected an IDX file of unsigned bytes; {damaged}")
        );
        assert_eq!(
            error(&[0, 0, 8]),
            format!("3 bytes in all, expected an IDX file of unsigned bytes; {damaged}")
        );
        assert_eq!(
            error(&example()[..9]),
            format!("9 bytes in all, expected a header of 12 bytes for 2 dimensions; {damaged}")
        );
        assert_eq!(
            error(&example()[..16]),
            format!("4 bytes of values, expected 6 (2 x 3); {truncated}")
        );
        assert_eq!(
            error(&gzip(&example()[..16])),
            format!("4 bytes of values, expected 6 (2 x 3); {truncated}")
        );
        let packed = gzip(&example());
        assert_eq!(
            error(&packed[..packed.len() - 5]),
            format!("compressed data that end too early, expected a whole gzip file; {truncated}")
        );
    }

    #[test]
    fn trailing_bytes() {
        let damaged = "the file is damaged: delete it and download it again";
        let longer = [example(), vec![0]].concat();
        let expected = format!("more than 6 bytes of values, expected 6 (2 x 3); {damaged}");
        assert_eq!(error(&longer), expected);
        assert_eq!(error(&gzip(&longer)), expected);
        // What follows a gzip member can only be another one.
        assert_eq!(
            error(&[gzip(&example()), b"more than ten bytes".to_vec()].concat()),
            format!(
                "damaged compressed data (invalid gzip header), \
                 expected a gzip file and nothing after it; {damaged}"
            )
        );
    }

    #[test]
    fn damaged_gzip() {
        let mut packed = gzip(&idx_bytes(&[100], &[7; 100]));
        let checksum = packed.len() - 8;
        packed[checksum] ^= 1;
        assert_eq!(
            error(&packed),
            "damaged compressed data (corrupt gzip stream does not have a matching checksum), \
             expected a gzip file and nothing after it; \
             the file is damaged: delete it and download it again"
        );
    }

    #[test]
    fn wrong_magic_and_type() {
        assert_eq!(
            error(b"\x89PNG\r\n\x1a\n"),
            "the magic number 0x89504e47, expected 0x0000 and then a type and a number of \
             dimensions, as every IDX file has; pass an IDX file, plain or compressed with gzip"
        );
        assert_eq!(
            error(&[0, 0, 0x0d, 1, 0, 0, 0, 0]),
            "values of type 0x0d (32-bit floats), expected 0x08 (unsigned bytes); \
             convert the values to unsigned bytes"
        );
        assert_eq!(
            error(&[0, 0, 0x77, 1, 0, 0, 0, 0]),
            "values of type 0x77, expected 0x08 (unsigned bytes); \
             convert the values to unsigned bytes"
        );
        assert_eq!(
            error(&[0, 0, 8, 0]),
            "0 dimensions, expected at least 1; \
             the file is damaged: delete it and download it again"
        );
    }

    #[test]
    fn lying_headers_cost_no_memory() {
        // 4 GiB claimed, 3 bytes there: allocating first would be seen as a time-out or an abort.
        assert_eq!(
            error(&idx_bytes(&[u32::MAX, 1, 1], &[1, 2, 3])),
            "3 bytes of values, expected 4294967295 (4294967295 x 1 x 1); \
             the file is truncated: delete it and download it again"
        );
        let absurd = "a header of 4294967295 x 4294967295 x 4294967295 values, expected no more \
                      values than memory can hold; \
                      the file is damaged: delete it and download it again";
        assert_eq!(error(&idx_bytes(&[u32::MAX; 3], &[1, 2, 3])), absurd);
        assert_eq!(error(&gzip(&idx_bytes(&[u32::MAX; 3], &[1, 2, 3]))), absurd);
        // 255 axes whose product overflows many times over.
        assert!(error(&idx_bytes(&[65536; 255], &[])).contains("than memory can hold"));
    }

    #[test]
    fn folders_and_missing_files() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            read(folder.path()).unwrap_err().to_string(),
            format!(
                "{}: a folder, expected an IDX file of unsigned bytes; pass the path of the file",
                folder.path().display()
            )
        );
        let missing: PathBuf = folder.path().join("missing");
        let error = read(&missing).unwrap_err();
        assert!(matches!(&error, FlowError::Io { source, .. }
            if source.kind() == io::ErrorKind::NotFound));
        assert_eq!(
            error.to_string(),
            format!(
                "cannot read {}: No such file or directory (os error 2); \
                 pass the path of a readable IDX file",
                missing.display()
            )
        );
    }
}
