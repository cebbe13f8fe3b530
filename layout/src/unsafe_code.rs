//! Counts unsafe code.

use syn::buffer::Cursor;
use syn::visit::{self, Visit};

/// Returns the number of unsafe blocks, functions, implementations, traits and foreign modules in a source
/// file; in macros, the number of times the keyword occurs.
pub fn count(source: &str) -> usize {
    let file = syn::parse_file(source).unwrap();
    let mut counter = Counter(0);
    counter.visit_file(&file);
    counter.0
}

struct Counter(usize);

impl<'ast> Visit<'ast> for Counter {
    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.0 += 1;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.0 += usize::from(matches!(signature.safety, syn::Safety::Unsafe(_)));
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.0 += usize::from(item.unsafety.is_some());
        visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.0 += usize::from(item.unsafety.is_some());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.0 += usize::from(item.unsafety.is_some());
        visit::visit_item_foreign_mod(self, item);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let scan = |input: syn::parse::ParseStream| {
            input.step(|cursor| {
                let mut rest = *cursor;
                self.0 += keywords(rest);
                while let Some((_, next)) = rest.token_tree() {
                    rest = next;
                }
                Ok(((), rest))
            })
        };
        call.parse_body_with(scan).unwrap();
    }
}

fn keywords(mut cursor: Cursor) -> usize {
    let mut found = 0;
    while !cursor.eof() {
        if let Some((inside, _, _, next)) = cursor.any_group() {
            found += keywords(inside);
            cursor = next;
        } else if let Some((ident, next)) = cursor.ident() {
            found += usize::from(ident == "unsafe");
            cursor = next;
        } else if let Some((_, next)) = cursor.token_tree() {
            cursor = next;
        }
    }
    found
}
