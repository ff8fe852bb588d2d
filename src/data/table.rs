//! Numbers in rows: comma-separated files.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use flate2::read::GzDecoder;

use crate::error::{FlowError, Result};
use crate::host;
use crate::record::write_atomically;

/// Rows of as many numbers, and a name for each column.
///
/// ```
/// use burn_flows::data::Table;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("table.csv");
/// std::fs::write(&path, "length,width\n1.5,2\n3,4\n5,6\n")?;
/// let (train, held_out) = Table::read(&path)?.divide(|row| row == 1);
/// assert_eq!(train.names, ["length", "width"]);
/// assert_eq!(train.rows, [[1.5, 2.0], [5.0, 6.0]]);
/// assert_eq!(held_out.to_tensor(&burn_flows::backend::device()).dims(), [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The names of the columns.
    pub names: Vec<String>,
    /// The rows, each as long as there are columns.
    pub rows: Vec<Vec<f64>>,
}

impl Table {
    /// Reads a file, unpacked on the way where its name ends in `.gz`. The first line is taken for the names
    /// of the columns where none of its fields is a number; else they are called `column_1` and so on. A byte
    /// order mark before it is left out.
    ///
    /// # Errors
    /// [`FlowError::Io`] if the file cannot be read; [`FlowError::Format`] with the line if it has no rows, a
    /// row has another number of fields than the first, or a field is no finite number.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| FlowError::Io {
            action: "read",
            path: path.into(),
            source,
            advice: "check the path",
        })?;
        let is_packed = path.extension().is_some_and(|extension| extension == "gz");
        let file: Box<dyn Read> =
            if is_packed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
        let mut table = Self { names: Vec::new(), rows: Vec::new() };
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line.map_err(|error| wrong(path, error.to_string(), "text"))?;
            // What a spreadsheet writes as UTF-8 begins with a mark of it.
            let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { &line[..] };
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let is_first = table.names.is_empty() && table.rows.is_empty();
            if fields == [""] {
                continue;
            }
            if is_first && fields.iter().all(|field| field.parse::<f64>().is_err()) {
                table.names = fields.into_iter().map(String::from).collect();
                continue;
            }
            let columns = table.rows.first().map_or(table.names.len(), Vec::len);
            if columns > 0 && fields.len() != columns {
                let got = format!("{} fields in line {number}", fields.len());
                let needed = format!("{columns}, as many fields in every line as in the first");
                return Err(wrong(path, got, &needed));
            }
            table.rows.push(numbers(path, number, &fields)?);
        }
        let Some(first) = table.rows.first() else {
            return Err(wrong(path, "no numbers".into(), "a row at least"));
        };
        if table.names.is_empty() {
            table.names = (1..=first.len()).map(|column| format!("column_{column}")).collect();
        }
        Ok(table)
    }

    /// The rows of a batch, under these names.
    pub fn of(names: &[String], rows: Tensor<2>) -> Self {
        let columns = rows.dims()[1];
        let values = host::to_f64(rows);
        let rows = values.chunks(columns.max(1)).map(<[f64]>::to_vec).collect();
        Self { names: names.to_vec(), rows }
    }

    /// Writes a file with a line of names, replaced as a whole.
    ///
    /// # Errors
    /// [`FlowError::Io`] if it cannot be written; [`FlowError::Invalid`] where [`read`](Self::read) would not give
    /// back the names: with a comma, a number, spaces around it or nothing in one of them.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        check_names(&self.names)?;
        let lines = self.rows.iter().map(|row| row.iter().map(f64::to_string).collect());
        let lines = [self.names.clone()].into_iter().chain(lines);
        let text: String = lines.map(|line: Vec<String>| line.join(",") + "\n").collect();
        write_atomically(path, text.as_bytes())
    }

    /// The rows as a batch, `[rows, columns]`, in f32.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let data = TensorData::new(self.rows.concat(), [self.rows.len(), self.columns()]);
        Tensor::from_data(data, (device, DType::F32))
    }

    /// The rows in two parts: those for which `taken` says so, by their numbers from 0, are the second one.
    pub fn divide(&self, taken: impl Fn(usize) -> bool) -> (Self, Self) {
        let part = |wanted: bool| {
            let rows = self.rows.iter().enumerate().filter(|(row, _)| taken(*row) == wanted);
            Self { names: self.names.clone(), rows: rows.map(|(_, row)| row.clone()).collect() }
        };
        (part(false), part(true))
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.names.len()
    }
}

/// An error for names that are not those in the line that they are written to.
pub(crate) fn check_names(names: &[String]) -> Result<()> {
    let is_read_back = |name: &&String| {
        let is_one_field = !name.is_empty() && !name.contains([',', '\n', '\r', '\u{feff}']);
        is_one_field && name.trim() == *name && name.parse::<f64>().is_err()
    };
    match names.iter().find(|name| !is_read_back(name)) {
        None => Ok(()),
        Some(name) => Err(FlowError::invalid(
            "the names of a table's columns",
            format!("{name:?}"),
            "names without commas and line breaks, without spaces around them, and not numbers",
            "name the column otherwise, year_2020 for 2020",
        )),
    }
}

fn numbers(path: &Path, line: usize, fields: &[&str]) -> Result<Vec<f64>> {
    let number = |(column, field): (usize, &&str)| match field.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => {
            let got = format!("\"{field}\" in line {line}, column {}", column + 1);
            Err(wrong(path, got, "a finite number in every field"))
        }
    };
    fields.iter().enumerate().map(number).collect()
}

fn wrong(path: &Path, got: String, needed: &str) -> FlowError {
    FlowError::Format {
        path: path.into(),
        got,
        needed: needed.into(),
        advice: "give comma-separated numbers, one sample a line".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        std::fs::write(&path, "\u{feff}length,width\r\n1.5,2\r\n3,4\r\n").unwrap();
        assert_eq!(Table::read(&path).unwrap().names, ["length", "width"]);
        std::fs::write(&path, "\u{feff}1.5\n2.5\n3.5\n").unwrap();
        assert_eq!(Table::read(&path).unwrap().rows, [[1.5], [2.5], [3.5]]);
    }

    #[test]
    fn names_are_read_back_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        let table =
            |name: &str| Table { names: vec![name.into(), "b".into()], rows: vec![vec![1.0; 2]] };
        for name in ["a \"b\"", "länge", "1st", "1 2"] {
            table(name).write(&path).unwrap();
            assert_eq!(Table::read(&path).unwrap(), table(name));
        }
        for name in ["", " a", "a,b", "a\nb", "2020", "1e3", "nan"] {
            let error = table(name).write(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }
}
