//! The JSON of a layer, of which every option is known.

use burn_flows::conditioner::Activation;
use serde_json::Value;

/// A layer or a part of one: its class and options.
#[derive(Clone)]
pub struct Spec {
    value: Value,
}

impl Spec {
    /// # Errors
    /// If it has an option that is not one of `known`.
    pub fn of(value: &Value, known: &[&str]) -> Result<Self, String> {
        let options = value.as_object().ok_or_else(|| format!("{value} is not a layer"))?;
        let unknown = options.keys().find(|key| *key != "class" && !known.contains(&key.as_str()));
        match unknown {
            Some(key) => Err(format!("{}: unknown option {key}", class(value)?)),
            None => Ok(Self { value: value.clone() }),
        }
    }

    pub fn class(&self) -> &str {
        self.value["class"].as_str().unwrap_or_default()
    }

    pub fn get(&self, key: &str) -> &Value {
        &self.value[key]
    }

    pub fn number(&self, key: &str) -> Result<f64, String> {
        self.value[key].as_f64().ok_or_else(|| format!("{}: {key} is not a number", self.class()))
    }

    /// A number, or what the library takes where none is given.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64, String> {
        if self.value[key].is_null() { Ok(default) } else { self.number(key) }
    }

    pub fn size(&self, key: &str) -> Result<usize, String> {
        let size = self.value[key].as_u64();
        Ok(size.ok_or_else(|| format!("{}: {key} is not a size", self.class()))? as usize)
    }

    /// A flag, or false.
    pub fn flag(&self, key: &str) -> bool {
        self.value[key].as_bool().unwrap_or(false)
    }

    pub fn sizes(&self, key: &str) -> Result<Vec<usize>, String> {
        serde_json::from_value(self.value[key].clone())
            .map_err(|_| format!("{}: {key} is not a list of sizes", self.class()))
    }

    pub fn numbers(&self, key: &str) -> Result<Vec<f64>, String> {
        serde_json::from_value(self.value[key].clone())
            .map_err(|_| format!("{}: {key} is not a list of numbers", self.class()))
    }

    /// An activation by its name, ReLU where none is given.
    pub fn activation(&self, key: &str) -> Result<Activation, String> {
        match self.value[key].as_str() {
            _ if self.value[key].is_null() => Ok(Activation::Relu),
            Some(name) => activation(name),
            None => Err(format!("{}: {key} is not a name", self.class())),
        }
    }
}

pub fn activation(name: &str) -> Result<Activation, String> {
    match name.to_ascii_lowercase().as_str() {
        "relu" => Ok(Activation::Relu),
        "elu" => Ok(Activation::Elu),
        "tanh" => Ok(Activation::Tanh),
        "silu" | "swish" => Ok(Activation::Silu),
        _ => Err(format!("unknown activation {name:?}")),
    }
}

/// The class of a layer.
pub fn class(value: &Value) -> Result<&str, String> {
    value["class"].as_str().ok_or_else(|| format!("{value} has no class"))
}

/// The layers of a file, each a JSON object.
pub fn layers(value: Value) -> Result<Vec<Value>, String> {
    value.as_array().cloned().ok_or("layers is not a list".into())
}
