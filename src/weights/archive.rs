//! ZIP archives whose entries are stored as they are, which is how `torch.save` writes.

use std::collections::BTreeMap;

/// What is wrong, in words.
pub(super) type Checked<T> = std::result::Result<T, String>;

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";

/// Bytes of an end of the central directory, and the longest comment behind it.
const END_LENGTH: usize = 22;
const LONGEST_COMMENT: usize = u16::MAX as usize;

/// Bytes of the records before their names.
const LOCAL_LENGTH: usize = 30;
const CENTRAL_LENGTH: usize = 46;

/// Alignment of the content of an entry, and the extra field that pads to it, as PyTorch has them.
const ALIGNMENT: usize = 64;
const PADDING_FIELD: u16 = 0x4246;

/// An unsigned number of `width` bytes at a place.
fn number(bytes: &[u8], at: usize, width: usize) -> Checked<usize> {
    let end = at.checked_add(width).ok_or("an archive that is cut off")?;
    let taken = bytes.get(at..end).ok_or("an archive that is cut off")?;
    let mut all = [0; 8];
    all[..width].copy_from_slice(taken);
    usize::try_from(u64::from_le_bytes(all)).map_err(|_| "an archive too large to be read".into())
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Checked<&[u8]> {
    at.checked_add(length)
        .and_then(|end| bytes.get(at..end))
        .ok_or("an archive that is cut off".into())
}

fn has(bytes: &[u8], at: usize, signature: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(signature))
}

/// The content of every entry, by name.
pub(super) fn entries(bytes: &[u8]) -> Checked<BTreeMap<String, &[u8]>> {
    let first = bytes.len().saturating_sub(END_LENGTH + LONGEST_COMMENT);
    let end = (first..bytes.len().saturating_sub(END_LENGTH - 1))
        .rev()
        .find(|&at| has(bytes, at, END))
        .ok_or("an archive without an end")?;
    let (mut count, mut at) = (number(bytes, end + 10, 2)?, number(bytes, end + 16, 4)?);
    if let Some(locator) = end.checked_sub(20).filter(|&at| has(bytes, at, LOCATOR_64)) {
        let end = number(bytes, locator + 8, 8)?;
        if !has(bytes, end, END_64) {
            return Err("an archive without an end".into());
        }
        (count, at) = (number(bytes, end + 32, 8)?, number(bytes, end + 48, 8)?);
    }
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        if !has(bytes, at, CENTRAL) {
            return Err("an archive with a broken directory".into());
        }
        let field = |offset, width| number(bytes, at + offset, width);
        let [name, extra, comment] = [field(28, 2)?, field(30, 2)?, field(32, 2)?];
        let name_bytes = slice(bytes, at + CENTRAL_LENGTH, name)?;
        let name_text = String::from_utf8_lossy(name_bytes).into_owned();
        let mut sizes = [field(24, 4)?, field(20, 4)?, field(42, 4)?];
        extend(&mut sizes, slice(bytes, at + CENTRAL_LENGTH + name, extra)?)?;
        let [length, packed, local] = sizes;
        if field(10, 2)? != 0 || length != packed {
            return Err(format!("an archive whose {name_text} is compressed"));
        }
        if !has(bytes, local, LOCAL) {
            return Err("an archive with a broken directory".into());
        }
        let start =
            local + LOCAL_LENGTH + number(bytes, local + 26, 2)? + number(bytes, local + 28, 2)?;
        let content = slice(bytes, start, length)?;
        let checksum = field(16, 4)?;
        // Files can be written without checksums.
        if checksum != 0 && crc32fast::hash(content) as usize != checksum {
            return Err(format!("an archive whose {name_text} is damaged"));
        }
        if entries.insert(name_text, content).is_some() {
            return Err("an archive with two entries of one name".into());
        }
        at += CENTRAL_LENGTH + name + extra + comment;
    }
    Ok(entries)
}

/// Replaces sizes that are too large for their fields by those of the extra field for them.
fn extend(sizes: &mut [usize; 3], mut extra: &[u8]) -> Checked<()> {
    while extra.len() >= 4 {
        let (kind, length) = (number(extra, 0, 2)?, number(extra, 2, 2)?);
        let field = slice(extra, 4, length)?;
        if kind == 1 {
            let large = sizes.iter_mut().filter(|size| **size == u32::MAX as usize);
            for (index, size) in large.enumerate() {
                *size = number(field, 8 * index, 8)?;
            }
        }
        extra = &extra[4 + length..];
    }
    Ok(())
}

/// An archive of the given entries.
pub(super) fn archive<'a>(
    entries: impl IntoIterator<Item = (String, &'a [u8])>,
) -> Checked<Vec<u8>> {
    let (mut out, mut directory, mut count) = (Vec::new(), Vec::new(), 0u16);
    let too_large = || "more than an archive holds; write a safetensors file".to_string();
    for (name, content) in entries {
        let local = u32::try_from(out.len()).map_err(|_| too_large())?;
        let length = u32::try_from(content.len()).map_err(|_| too_large())?;
        let name_length = u16::try_from(name.len()).map_err(|_| too_large())?;
        count = count.checked_add(1).ok_or_else(too_large)?;
        let start = out.len() + LOCAL_LENGTH + name.len() + 4;
        let padding = start.next_multiple_of(ALIGNMENT) - start;
        // Version, flags, method, time and date, checksum, sizes, length of the name.
        let mut record = [20, 0, 0, 0, 0x21].map(u16::to_le_bytes).concat();
        for number in [crc32fast::hash(content), length, length] {
            record.extend(number.to_le_bytes());
        }
        record.extend(name_length.to_le_bytes());
        out.extend(LOCAL);
        out.extend(&record);
        out.extend((4 + padding as u16).to_le_bytes());
        out.extend(name.bytes());
        out.extend(PADDING_FIELD.to_le_bytes());
        out.extend((padding as u16).to_le_bytes());
        out.resize(out.len() + padding, 0);
        out.extend(content);
        directory.extend(CENTRAL);
        directory.extend(20u16.to_le_bytes());
        directory.extend(&record);
        // No extra field, comment, disk or attributes.
        directory.extend([0; 12]);
        directory.extend(local.to_le_bytes());
        directory.extend(name.bytes());
    }
    let [at, length] = [out.len(), directory.len()].map(u32::try_from);
    let (at, length) = (at.map_err(|_| too_large())?, length.map_err(|_| too_large())?);
    out.extend(directory);
    out.extend(END);
    out.extend([0; 4]);
    out.extend([count, count].map(u16::to_le_bytes).concat());
    out.extend([length, at].map(u32::to_le_bytes).concat());
    out.extend([0; 2]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_gives_back_what_was_put_in() {
        let large = vec![7; 1000];
        let given = [("a/data.pkl", &b"abc"[..]), ("a/data/0", &large), ("a/empty", b"")];
        let bytes = archive(given.map(|(name, content)| (name.to_string(), content))).unwrap();
        let read = entries(&bytes).unwrap();
        assert_eq!(read.len(), 3);
        for (name, content) in given {
            assert_eq!(read[name], content);
            let place = read[name].as_ptr() as usize - bytes.as_ptr() as usize;
            assert!(place.is_multiple_of(ALIGNMENT), "{name} is at {place}");
        }
    }

    #[test]
    fn damage_is_found() {
        let mut bytes = archive([("a".to_string(), &b"abcdefgh"[..])]).unwrap();
        let place = bytes.windows(8).position(|window| window == b"abcdefgh").unwrap();
        bytes[place] ^= 1;
        assert_eq!(entries(&bytes).unwrap_err(), "an archive whose a is damaged");
        for length in 0..bytes.len() {
            assert!(entries(&bytes[..length]).is_err(), "{length}");
        }
    }
}
