//! What the macros expand to: no arithmetic, only where the parts are. What is done with them is written
//! in burn-flows.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DataEnum, DataStruct, DeriveInput, Error, Field, Ident, Index, Member, Result,
    Type, parse_quote,
};

/// The rank of the tensors: a name that no type or constant of the user's has.
const RANK: &str = "__RANK";

/// Implements `Parts`, by which a type is a `Flow`.
pub fn flow(input: &DeriveInput) -> Result<TokenStream> {
    refuse_attributes(&input.attrs)?;
    let body = match &input.data {
        Data::Struct(data) => sequence(&input.ident, data)?,
        Data::Enum(data) => one_of_flows(&input.ident, data)?,
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span,
                "derive(Flow): a union is no flow; use a struct, for flows one after the other, or an \
                 enum, for one of several",
            ));
        }
    };
    let Body { types, walk, walk_back, relayed } = body;
    let rank = format_ident!("{RANK}");
    let methods = quote! {
        fn walk<__W: ::burn_flows::__private::Walk<#rank>>(
            &self,
            walk: &mut __W,
            state: __W::State,
        ) -> __W::State {
            #walk
        }

        fn walk_back<__W: ::burn_flows::__private::Walk<#rank>>(
            &self,
            walk: &mut __W,
            state: __W::State,
        ) -> __W::State {
            #walk_back
        }

        fn relayed(self, relay: &mut ::burn_flows::__private::Relay<#rank>) -> Self {
            #relayed
        }
    };
    let traits = [quote!(::burn_flows::__private::Parts), quote!(::burn_flows::Flow)];
    Ok(implementation(input, traits, &types, &methods))
}

/// Implements a trait of priors: its methods are listed beside it.
pub fn prior(input: &DeriveInput, name: &str) -> Result<TokenStream> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new(
            input.ident.span(),
            format!("derive({name}): only an enum can be one of several priors"),
        ));
    };
    let variants = variants(name, "prior", &input.ident, data)?;
    let names = variants.iter().map(|(variant, member, _)| quote!(#variant #member));
    let (rank, name) = (format_ident!("{RANK}"), format_ident!("{name}"));
    let methods = quote! {
        ::burn_flows::__one_of_priors! { #name #rank #(#names)* }
    };
    let types: Vec<_> = variants.iter().map(|(_, _, ty)| *ty).collect();
    let the_trait = quote!(::burn_flows::prior::#name);
    Ok(implementation(input, [the_trait.clone(), the_trait], &types, &methods))
}

/// `impl` of the first trait, for every rank for which the given types have the second one.
fn implementation(
    input: &DeriveInput,
    [the_trait, of_parts]: [TokenStream; 2],
    types: &[&Type],
    methods: &TokenStream,
) -> TokenStream {
    let (name, rank) = (&input.ident, format_ident!("{RANK}"));
    let (_, arguments, _) = input.generics.split_for_impl();
    let mut generics = input.generics.clone();
    generics.params.push(parse_quote!(const #rank: usize));
    let conditions = generics.make_where_clause();
    for ty in types {
        conditions.predicates.push(parse_quote!(#ty: #of_parts<#rank>));
    }
    conditions.predicates.push(parse_quote!(Self: ::burn_flows::__private::Module));
    let (parameters, _, conditions) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #parameters #the_trait<#rank> for #name #arguments #conditions {
            #methods
        }
    }
}

/// The three methods of `Parts`.
struct Body<'a> {
    types: Vec<&'a Type>,
    walk: TokenStream,
    walk_back: TokenStream,
    relayed: TokenStream,
}

fn sequence<'a>(name: &Ident, data: &'a DataStruct) -> Result<Body<'a>> {
    let (mut parts, mut others, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for (index, field) in data.fields.iter().enumerate() {
        let member = member(index, field);
        if is_skipped(field)? {
            others.push(member);
            continue;
        }
        refuse_no_flow(&member, &field.ty)?;
        parts.push(member);
        types.push(&field.ty);
    }
    if parts.is_empty() {
        return Err(Error::new(
            name.span(),
            format!("derive(Flow): {name} has no field that is a flow"),
        ));
    }
    let back = parts.iter().rev();
    Ok(Body {
        walk: quote!(#(let state = walk.part(&self.#parts, state);)* state),
        walk_back: quote!(#(let state = walk.part(&self.#back, state);)* state),
        relayed: quote! {
            Self { #(#parts: relay.through(self.#parts),)* #(#others: self.#others,)* }
        },
        types,
    })
}

fn one_of_flows<'a>(name: &Ident, data: &'a DataEnum) -> Result<Body<'a>> {
    let mut body = (Vec::new(), Vec::new(), Vec::new());
    for (variant, member, ty) in variants("Flow", "flow", name, data)? {
        refuse_no_flow(&Member::Named(variant.clone()), ty)?;
        body.0.push(quote!(Self::#variant { #member: part } => walk.part(part, state),));
        body.1.push(quote! {
            Self::#variant { #member: part } => Self::#variant { #member: relay.through(part) },
        });
        body.2.push(ty);
    }
    let (walk, relayed, types) = body;
    let walk = quote!(match self { #(#walk)* });
    Ok(Body { types, walk_back: walk.clone(), walk, relayed: quote!(match self { #(#relayed)* }) })
}

/// The variants with the one field of each.
fn variants<'a>(
    derive: &str,
    what: &str,
    name: &Ident,
    data: &'a DataEnum,
) -> Result<Vec<(&'a Ident, Member, &'a Type)>> {
    if data.variants.is_empty() {
        return Err(Error::new(name.span(), format!("derive({derive}): {name} has no variant")));
    }
    let mut variants = Vec::new();
    for variant in &data.variants {
        refuse_attributes(&variant.attrs)?;
        let mut fields = variant.fields.iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            let advice = match (what, variant.fields.len()) {
                (_, 0) => format!("; where nothing is to be done, use an Option of {name}"),
                ("flow", _) => "; put them into a tuple or a struct of flows".into(),
                _ => String::new(),
            };
            return Err(Error::new(
                variant.span(),
                format!(
                    "derive({derive}): a variant holds one {what}, but {name}::{} has {} fields{advice}",
                    variant.ident,
                    variant.fields.len()
                ),
            ));
        };
        refuse_attributes(&field.attrs)?;
        variants.push((&variant.ident, member(0, field), &field.ty));
    }
    Ok(variants)
}

fn member(index: usize, field: &Field) -> Member {
    match &field.ident {
        Some(name) => Member::Named(name.clone()),
        None => Member::Unnamed(Index { index: index as u32, span: Span::call_site() }),
    }
}

/// Whether a field of a struct takes no part: marked so, or no module at all.
fn is_skipped(field: &Field) -> Result<bool> {
    let mut skipped = false;
    for attribute in &field.attrs {
        let is_ours = attribute.path().is_ident("flow");
        if !is_ours && !attribute.path().is_ident("module") {
            continue;
        }
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("skip") {
                skipped = true;
                return Ok(());
            }
            // What else there is for modules is Burn's affair.
            if is_ours {
                Err(meta.error("derive(Flow): the attribute is #[flow(skip)]"))
            } else {
                Ok(())
            }
        })?;
    }
    Ok(skipped)
}

fn refuse_attributes(attributes: &[Attribute]) -> Result<()> {
    match attributes.iter().find(|attribute| attribute.path().is_ident("flow")) {
        Some(attribute) => Err(Error::new(
            attribute.span(),
            "derive(Flow): #[flow(skip)] is for the fields of a struct",
        )),
        None => Ok(()),
    }
}

/// Refuses the types that everybody knows to be no flows; of others the compiler says so where the flow is
/// used.
fn refuse_no_flow(member: &Member, ty: &Type) -> Result<()> {
    const NO_FLOWS: [&str; 18] = [
        "Param",
        "Tensor",
        "PhantomData",
        "String",
        "bool",
        "char",
        "f32",
        "f64",
        "usize",
        "u8",
        "u16",
        "u32",
        "u64",
        "isize",
        "i8",
        "i16",
        "i32",
        "i64",
    ];
    let Type::Path(path) = ty else { return Ok(()) };
    let Some(last) = path.path.segments.last() else { return Ok(()) };
    if !NO_FLOWS.iter().any(|name| last.ident == name) {
        return Ok(());
    }
    let field = match member {
        Member::Named(name) => name.to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    };
    Err(Error::new(
        ty.span(),
        format!(
            "derive(Flow): {field} is a {}, which is no flow; mark it #[flow(skip)] if it takes no part \
             in the map, or else implement Flow by hand",
            last.ident
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(of: fn(&DeriveInput) -> Result<TokenStream>, input: DeriveInput) -> String {
        of(&input).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_composition_is_refused_by_name() {
        let cases: [(DeriveInput, &str); 9] = [
            (
                parse_quote!(union Step { a: A, b: B }),
                "derive(Flow): a union is no flow; use a struct",
            ),
            (
                parse_quote!(
                    struct Step {}
                ),
                "derive(Flow): Step has no field that is a flow",
            ),
            (
                parse_quote!(
                    struct Step {
                        #[module(skip)]
                        width: usize,
                    }
                ),
                "derive(Flow): Step has no field that is a flow",
            ),
            (
                parse_quote!(
                    struct Step {
                        norm: ActNorm,
                        scale: Param<Tensor<1>>,
                    }
                ),
                "derive(Flow): scale is a Param, which is no flow; mark it #[flow(skip)] if",
            ),
            (
                parse_quote!(
                    struct Step(ActNorm, usize);
                ),
                "derive(Flow): 1 is a usize, which is no flow",
            ),
            (
                parse_quote!(
                    struct Step {
                        #[flow(last)]
                        norm: ActNorm,
                    }
                ),
                "derive(Flow): the attribute is #[flow(skip)]",
            ),
            (
                parse_quote!(
                    enum Step {}
                ),
                "derive(Flow): Step has no variant",
            ),
            (
                parse_quote!(
                    enum Step {
                        Norm(ActNorm),
                        None,
                    }
                ),
                "derive(Flow): a variant holds one flow, but Step::None has 0 fields; where nothing is \
                 to be done, use an Option of Step",
            ),
            (
                parse_quote!(
                    enum Step {
                        Both(ActNorm, Mixing),
                    }
                ),
                "derive(Flow): a variant holds one flow, but Step::Both has 2 fields; put them into a \
                 tuple or a struct of flows",
            ),
        ];
        for (input, expected) in cases {
            let message = error(flow, input);
            assert!(message.starts_with(expected), "{message}");
        }
        let of_struct: DeriveInput = parse_quote!(
            struct Pair {
                a: A,
            }
        );
        assert_eq!(
            error(|input| prior(input, "Prior"), of_struct),
            "derive(Prior): only an enum can be one of several priors"
        );
    }

    #[test]
    fn a_tuple_struct_is_a_sequence_as_well() {
        let input: DeriveInput = parse_quote!(
            struct Step<C>(ActNorm, #[flow(skip)] usize, Coupling<C>);
        );
        let code = flow(&input).unwrap().to_string().replace(' ', "");
        assert!(
            code.contains("Self{0:relay.through(self.0),2:relay.through(self.2),1:self.1,}"),
            "{code}"
        );
        assert!(code.contains("Coupling<C>:::burn_flows::Flow<__RANK>"), "{code}");
    }
}
