//! tmp
use crate::error::Result;
use burn::module::Module;
use burn::store::{ModuleSnapshot, SafetensorsStore};
use std::path::Path;
/// tmp
pub fn save<M: Module + ModuleSnapshot>(model: &M, path: &Path) -> Result<()> {
    let mut store = SafetensorsStore::from_file(path).overwrite(true);
    model.save_into(&mut store).unwrap();
    Ok(())
}
