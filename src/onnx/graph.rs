//! A graph of operators in the making.

use std::cell::RefCell;

use rten_onnx::onnx::{
    AttributeProto, AttributeType, DataType, Dimension, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, TypeProtoTensor, ValueInfoProto,
};

use super::unknown;
use crate::error::Result;

/// Versions of the operators and of the format, which runtimes have had since 2022.
const OPSET: i64 = 17;
const FORMAT: i64 = 8;

/// The name of the first axis, which may have any size.
const BATCH: &str = "batch";

/// A tensor of a graph: its name, and its shape without the batch.
#[derive(Debug, Clone)]
pub struct Value {
    name: String,
    shape: Vec<usize>,
}

impl Value {
    /// Size of the axis behind the batch.
    pub(super) fn channels(&self) -> usize {
        self.shape[0]
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Values of a channel.
    pub(super) fn pixels(&self) -> usize {
        self.shape[1..].iter().product()
    }
}

/// A graph, and the log-determinant of what was added to it.
#[derive(Debug, Default)]
pub struct Graph {
    graph: GraphProto,
    /// Terms of the log-determinant, `[batch]` each.
    log_dets: Vec<Value>,
    /// The part of it that is the same for every sample.
    log_det: f64,
    count: usize,
}

/// An attribute of an operator.
pub(super) enum Attribute<'a> {
    Float(f64),
    Int(i64),
    Ints(&'a [i64]),
}

fn attribute(name: &str, value: &Attribute<'_>) -> AttributeProto {
    let mut made = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    match value {
        Attribute::Float(value) => {
            (made.f, made.r#type) = (Some(*value as f32), Some(AttributeType::FLOAT));
        }
        Attribute::Int(value) => {
            (made.i, made.r#type) = (Some(*value), Some(AttributeType::INT));
        }
        Attribute::Ints(values) => {
            (made.ints, made.r#type) = (values.to_vec(), Some(AttributeType::INTS));
        }
    }
    made
}

fn described(name: &str, shape: &[usize]) -> ValueInfoProto {
    let batch = Dimension { dim_param: Some(BATCH.into()), ..Dimension::default() };
    let sizes = shape
        .iter()
        .map(|&size| Dimension { dim_value: Some(size as i64), ..Dimension::default() });
    let shape = TensorShapeProto { dim: std::iter::once(batch).chain(sizes).collect() };
    let tensor = TypeProtoTensor { elem_type: Some(DataType::FLOAT), shape: Some(shape) };
    let r#type = TypeProto { tensor_type: Some(tensor), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type) }
}

impl Graph {
    pub(super) fn input(&mut self, name: &str, shape: &[usize]) -> Value {
        self.graph.input.push(described(name, shape));
        Value { name: name.into(), shape: shape.to_vec() }
    }

    fn name(&mut self, of: &str) -> String {
        self.count += 1;
        format!("{of}_{}", self.count)
    }

    fn initializer(&mut self, dims: &[usize], data_type: DataType, bytes: Vec<u8>) -> String {
        let name = self.name("constant");
        self.graph.initializer.push(TensorProto {
            dims: dims.iter().map(|&size| size as i64).collect(),
            data_type: Some(data_type),
            raw_data: Some(RefCell::new(bytes)),
            name: Some(name.clone()),
            ..TensorProto::default()
        });
        name
    }

    /// A constant of the given shape, in f32.
    pub(super) fn constant(&mut self, values: &[f64], dims: &[usize]) -> String {
        let bytes = values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
        self.initializer(dims, DataType::FLOAT, bytes)
    }

    fn integers(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(&[values.len()], DataType::INT64, bytes)
    }

    /// A value for each channel, to broadcast over batch and space.
    fn per_channel(&mut self, values: &[f64], like: &Value) -> String {
        let mut dims = vec![1; like.shape.len()];
        dims[0] = values.len();
        self.constant(values, &dims)
    }

    /// An operator of named inputs, whose output has the given shape.
    pub(super) fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
        shape: &[usize],
    ) -> Value {
        let name = self.name(op);
        self.graph.node.push(NodeProto {
            name: Some(format!("{name}_node")),
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![name.clone()],
            op_type: Some(op.into()),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: None,
        });
        Value { name, shape: shape.to_vec() }
    }

    /// An elementwise operator of one input.
    pub(super) fn unary(&mut self, op: &str, x: &Value) -> Value {
        self.node(op, &[&x.name], &[], &x.shape)
    }

    /// An elementwise operator of one input with attributes.
    pub(super) fn unary_with(
        &mut self,
        op: &str,
        x: &Value,
        attributes: &[(&str, Attribute<'_>)],
    ) -> Value {
        self.node(op, &[&x.name], attributes, &x.shape)
    }

    /// An elementwise operator of two inputs of one shape.
    pub(super) fn binary(&mut self, op: &str, a: &Value, b: &Value) -> Value {
        self.node(op, &[&a.name, &b.name], &[], &a.shape)
    }

    /// An elementwise operator with a number.
    pub(super) fn with_number(&mut self, op: &str, x: &Value, number: f64) -> Value {
        let number = self.constant(&[number], &[]);
        self.node(op, &[&x.name, &number], &[], &x.shape)
    }

    /// An elementwise operator with a number for each channel.
    pub(super) fn with_channels(&mut self, op: &str, x: &Value, numbers: &[f64]) -> Value {
        let numbers = self.per_channel(numbers, x);
        self.node(op, &[&x.name, &numbers], &[], &x.shape)
    }

    /// An elementwise operator with a constant that broadcasts over the batch.
    pub(super) fn with_constant(
        &mut self,
        op: &str,
        x: &Value,
        numbers: &[f64],
        dims: &[usize],
    ) -> Value {
        let numbers = self.constant(numbers, dims);
        self.node(op, &[&x.name, &numbers], &[], &x.shape)
    }

    /// `scale x + shift` by channels.
    pub(super) fn affine(&mut self, x: &Value, scale: &[f64], shift: &[f64]) -> Value {
        let scaled = self.with_channels("Mul", x, scale);
        self.with_channels("Add", &scaled, shift)
    }

    pub(super) fn clip(&mut self, x: &Value, low: f64, high: f64) -> Value {
        let (low, high) = (self.constant(&[low], &[]), self.constant(&[high], &[]));
        self.node("Clip", &[&x.name, &low, &high], &[], &x.shape)
    }

    /// Minus infinity in samples' entries outside of the interval, zero within.
    pub(super) fn penalty_outside(&mut self, x: &Value, low: f64, high: f64) -> Value {
        let (low, high) = (self.constant(&[low], &[]), self.constant(&[high], &[]));
        let below = self.node("Less", &[&x.name, &low], &[], &x.shape);
        let above = self.node("Greater", &[&x.name, &high], &[], &x.shape);
        let outside = self.binary("Or", &below, &above);
        let (none, all) = (self.constant(&[0.0], &[]), self.constant(&[f64::NEG_INFINITY], &[]));
        self.node("Where", &[&outside.name, &all, &none], &[], &x.shape)
    }

    /// Channels (or features) of `x` from `start` on.
    pub(super) fn narrow(&mut self, x: &Value, start: usize, length: usize) -> Value {
        let [start, end] = [start as i64, (start + length) as i64].map(|at| self.integers(&[at]));
        let axis = self.integers(&[1]);
        let mut shape = x.shape.clone();
        shape[0] = length;
        self.node("Slice", &[&x.name, &start, &end, &axis], &[], &shape)
    }

    /// The channels of the given numbers, in their order.
    pub(super) fn select(&mut self, x: &Value, places: &[usize]) -> Value {
        let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        let indices = self.integers(&places);
        let mut shape = x.shape.clone();
        shape[0] = places.len();
        self.node("Gather", &[&x.name, &indices], &[("axis", Attribute::Int(1))], &shape)
    }

    /// All channels of the first, then those of the next.
    pub(super) fn join(&mut self, parts: &[Value]) -> Value {
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(Value::channels).sum();
        self.node("Concat", &names, &[("axis", Attribute::Int(1))], &shape)
    }

    /// The same values in another shape, without the batch.
    pub(super) fn reshape(&mut self, x: &Value, shape: &[usize]) -> Value {
        // Zero keeps the size of the batch.
        let sizes = std::iter::once(0).chain(shape.iter().map(|&size| size as i64));
        let sizes = self.integers(&sizes.collect::<Vec<_>>());
        self.node("Reshape", &[&x.name, &sizes], &[], shape)
    }

    /// The axes in another order, numbered with the batch.
    pub(super) fn transpose(&mut self, x: &Value, order: &[usize]) -> Value {
        let shape: Vec<usize> = order[1..].iter().map(|&axis| x.shape[axis - 1]).collect();
        let order: Vec<i64> = order.iter().map(|&axis| axis as i64).collect();
        self.node("Transpose", &[&x.name], &[("perm", Attribute::Ints(&order))], &shape)
    }

    /// A convolution that keeps the size, its weight `[out, in, k, k]`, `k` being 1 or 3; what it sees beyond the
    /// border is `padding`.
    pub(super) fn conv(&mut self, x: &Value, weight: &[f64], bias: &[f64], padding: f64) -> Value {
        let (inputs, outputs) = (x.channels(), bias.len());
        let side = if weight.len() == inputs * outputs { 1 } else { 3 };
        let weight = self.constant(weight, &[outputs, inputs, side, side]);
        let bias = self.constant(bias, &[outputs]);
        let mut shape = x.shape.clone();
        shape[0] = outputs;
        let border = if side == 3 { 1 } else { 0 };
        let mut pads = [border; 4];
        let mut input = x.name.clone();
        if padding != 0.0 && side == 3 {
            let sizes = self.integers(&[0, 0, 1, 1, 0, 0, 1, 1]);
            let value = self.constant(&[padding], &[]);
            let padded = [x.shape[0], x.shape[1] + 2, x.shape[2] + 2];
            input = self.node("Pad", &[&input, &sizes, &value], &[], &padded).name;
            pads = [0; 4];
        }
        let side = side as i64;
        let attributes =
            [("kernel_shape", Attribute::Ints(&[side, side])), ("pads", Attribute::Ints(&pads))];
        self.node("Conv", &[&input, &weight, &bias], &attributes, &shape)
    }

    /// `y = x W + b`, `W` being `[in, out]`.
    pub(super) fn linear(&mut self, x: &Value, weight: &[f64], bias: &[f64]) -> Value {
        let outputs = bias.len();
        let weight = self.constant(weight, &[x.channels(), outputs]);
        let bias = self.constant(bias, &[outputs]);
        self.node("Gemm", &[&x.name, &weight, &bias], &[], &[outputs])
    }

    /// The sum over all but the batch, `[batch]`.
    pub(super) fn sum(&mut self, x: &Value) -> Value {
        let axes: Vec<i64> = (1..=x.shape.len() as i64).collect();
        let axes = self.integers(&axes);
        self.node("ReduceSum", &[&x.name, &axes], &[("keepdims", Attribute::Int(0))], &[])
    }

    /// Adds a part of the log-determinant that is the same for every sample.
    pub(super) fn add_log_det(&mut self, log_det: f64) {
        self.log_det += log_det;
    }

    /// Adds the sum of `ln dz/dx` of all entries.
    pub(super) fn add_log_slopes(&mut self, log_slopes: &Value) {
        let sum = self.sum(log_slopes);
        self.log_dets.push(sum);
    }

    /// The log-determinant and the densities of the parts of the latent, `[batch]` each, together.
    pub(super) fn log_prob(&mut self, terms: Vec<Value>) -> Value {
        let terms: Vec<Value> = self.log_dets.drain(..).chain(terms).collect();
        let sum = terms.into_iter().reduce(|sum, term| self.binary("Add", &sum, &term));
        let sum = sum.expect("a latent has a density");
        self.with_number("Add", &sum, self.log_det)
    }

    /// The model with the one output `result`, of the given name and shape.
    pub(super) fn into_bytes(
        mut self,
        output: &str,
        result: &Value,
        shape: &[usize],
    ) -> Result<Vec<u8>> {
        self.graph.node.push(NodeProto {
            name: Some(format!("{output}_node")),
            input: vec![result.name.clone()],
            output: vec![output.into()],
            op_type: Some("Identity".into()),
            ..NodeProto::default()
        });
        self.graph.output.push(described(output, shape));
        let model = ModelProto {
            ir_version: Some(FORMAT),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(OPSET),
            }],
            producer_name: Some(env!("CARGO_PKG_NAME").into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            ..ModelProto::default()
        };
        let rest = model.write_buf().map_err(|error| unknown(&format!("a graph of {error}")))?;
        Ok([named_graph(output), rest].concat())
    }
}

/// The field `graph` of a model with nothing but a name in it, which rten-onnx does not write and checkers
/// ask for. Where a field stands twice, as here, parsers merge the two: protobuf's encoding, "Last One Wins".
fn named_graph(name: &str) -> Vec<u8> {
    const GRAPH: u8 = 7 << 3 | 2;
    const NAME: u8 = 2 << 3 | 2;
    let length = u8::try_from(name.len()).expect("outputs have short names");
    [&[GRAPH, length + 2, NAME, length][..], name.as_bytes()].concat()
}
