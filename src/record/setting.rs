//! What a layer computes with beside its parameters.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::ops::Deref;
use std::sync::Arc;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::Device;
use serde::Serialize;

/// What a visitor is told that it enters, where it comes to a setting.
const CONTAINER: &str = "Setting";

/// A value that a layer computes with and that is no parameter: a mask, a scale map, an epsilon.
///
/// Burn's records hold parameters alone, so a skipped field is whatever the model at hand has. A field
/// of this type is written to the record by itself, as JSON under its path, and
/// [`load`](super::load) refuses a record in which it has another value. It is read like the value.
///
/// ```
/// use burn::module::Module;
/// use burn_flows::record::{self, Setting};
///
/// #[derive(Module, Debug)]
/// struct Zoom {
///     factor: Setting<f64>,
/// }
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("zoom.safetensors");
/// record::save(&Zoom { factor: Setting::new(2.0) }, &path)?;
/// let error = record::load(Zoom { factor: Setting::new(3.0) }, &path).unwrap_err();
/// assert!(error.to_string().contains("factor is 2.0, the model's is 3.0"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// In a struct that derives [`Flow`](macro@crate::Flow) the field is marked `#[flow(skip)]`.
///
/// A visitor of modules is told of a setting by
/// [`enter_module`](ModuleVisitor::enter_module) with the JSON as the name and `"Setting"` as the
/// type of the container.
#[derive(Clone)]
pub struct Setting<T> {
    value: T,
    json: Arc<str>,
}

impl<T: Serialize> Setting<T> {
    /// A setting of this value.
    ///
    /// # Panics
    /// If the value has no JSON (a map whose keys are not texts).
    pub fn new(value: T) -> Self {
        let json = serde_json::to_string(&value).expect("Setting: the value has no JSON").into();
        Self { value, json }
    }
}

impl Setting<Option<Arc<str>>> {
    /// A text that is JSON already, or none.
    pub(crate) fn of_json(json: Option<String>) -> Self {
        let value: Option<Arc<str>> = json.map(Arc::from);
        Self { json: value.clone().unwrap_or_else(|| Arc::from(NONE)), value }
    }
}

impl<T: Serialize> From<T> for Setting<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T> Deref for Setting<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Debug> Debug for Setting<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(formatter)
    }
}

impl<T> Display for Setting<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.json)
    }
}

impl<T: Clone + Debug + Send> Module for Setting<T> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(&self.json, CONTAINER);
        visitor.exit_module(&self.json, CONTAINER);
    }

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self
    }

    fn to_device(self, _device: &Device) -> Self {
        self
    }

    fn fork(self, _device: &Device) -> Self {
        self
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn train(self) -> Self {
        self
    }
}

impl<T: Clone + Debug + Send> ModuleDisplayDefault for Setting<T> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(self).optional()
    }
}

impl<T: Clone + Debug + Send> ModuleDisplay for Setting<T> {}

/// The JSON of a setting that says nothing.
const NONE: &str = "null";

/// The JSON of every setting in `module` by its path; without those that are `None`.
pub(super) fn settings<M: Module>(module: &M) -> BTreeMap<String, String> {
    #[derive(Default)]
    struct Collect {
        path: Vec<String>,
        found: BTreeMap<String, String>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            if container == CONTAINER && name != NONE {
                self.found.insert(self.path.join("."), name.into());
            }
            self.path.push(name.into());
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.found
}
