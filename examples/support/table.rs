//! Numbers in rows: comma-separated files.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::record::write_atomically;
use burn_flows::{FlowError, Result};
use flate2::read::GzDecoder;

/// Rows of as many numbers, and a name for each column.
pub struct Table {
    pub names: Vec<String>,
    pub rows: Vec<Vec<f64>>,
}

impl Table {
    /// Reads a file, unpacked on the way where its name ends in `.gz`. The first line is taken for the names
    /// of the columns where none of its fields is a number.
    pub fn read(path: &Path) -> Result<Self> {
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
        let values: Vec<f64> = rows.try_into_vec_as().expect("a batch of floats");
        Self { names: names.to_vec(), rows: values.chunks(columns).map(<[f64]>::to_vec).collect() }
    }

    /// Writes a file with a line of names, replaced as a whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let lines = self.rows.iter().map(|row| row.iter().map(f64::to_string).collect());
        write_lines(path, [self.names.clone()].into_iter().chain(lines))
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.names.len()
    }
}

/// Writes lines of fields, replaced as a whole.
pub fn write_lines(path: &Path, lines: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let lines = lines.into_iter().map(|line| line.join(",") + "\n");
    write_atomically(path, lines.collect::<String>().as_bytes())
}

/// Rows as a batch, `[rows, columns]`, in f32.
pub fn to_tensor(rows: &[Vec<f64>], device: &Device) -> Tensor<2> {
    let columns = rows.first().map_or(0, Vec::len);
    let data = TensorData::new(rows.concat(), [rows.len(), columns]);
    Tensor::from_data(data, (device, DType::F32))
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
