//! Elements that are moved from one surrounding to another and have to mean the same there.

/// Adds declarations to an element's opening tag, except those that it has.
pub(super) fn declare(element: &str, declarations: &[(&str, &str)]) -> String {
    let declared = attributes(element);
    let name = element.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>')).unwrap_or(element.len());
    let (name, rest) = element.split_at(name);
    let mut whole = String::with_capacity(element.len() + 80);
    whole.push_str(name);
    for (attribute, namespace) in declarations {
        if !declared.split(|c: char| c.is_ascii_whitespace() || c == '=').any(|word| word == *attribute) {
            whole.extend([" ", attribute, "='", namespace, "'"]);
        }
    }
    whole.push_str(rest);
    whole
}

/// An element's opening tag with all values left out, so that what looks like an attribute is one.
fn attributes(element: &str) -> String {
    let mut names = String::new();
    let mut quote = None;
    for c in element.chars() {
        match quote {
            Some(opening) if c == opening => quote = None,
            Some(_) => {}
            None if c == '>' => break,
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                names.push(' ');
            }
            None => names.push(c),
        }
    }
    names
}
