//! The derive macros of [burn-flows](https://docs.rs/burn-flows), which re-exports them beside the
//! traits they implement. What they mean is told there.

#![deny(missing_docs)]

mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes a struct of flows (one after the other, in the order of its fields) or an enum of flows (one of
/// several) a `Flow` of every rank that all of its flows have.
///
/// Fields with `#[flow(skip)]` or `#[module(skip)]` take no part.
#[proc_macro_derive(Flow, attributes(flow))]
pub fn flow(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::flow(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an enum of priors (one of several) a `Prior` of every rank that all of them have.
#[proc_macro_derive(Prior)]
pub fn prior(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::prior(&input, "Prior").unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an enum of split priors (one of several) a `SplitPrior` of every rank that all of them have.
#[proc_macro_derive(SplitPrior)]
pub fn split_prior(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::prior(&input, "SplitPrior").unwrap_or_else(syn::Error::into_compile_error).into()
}
