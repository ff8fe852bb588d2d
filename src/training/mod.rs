//! Training: maximum likelihood, reversible backpropagation, recipes.

pub mod reversible;
