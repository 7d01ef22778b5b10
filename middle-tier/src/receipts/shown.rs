//! Callback URLs as logs show them.

/// Scheme, host, port and path. A query is often a receiver's credential, and so is a user in the authority: neither belongs
/// into a log.
pub(super) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (url, _) = url.split_at(end);
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_a_credential() {
        for (url, expected) in [
            ("https://example.com/a/b?token=hidden", "https://example.com/a/b"),
            ("https://example.com?token=hidden", "https://example.com"),
            ("https://example.com:8443/a#hidden", "https://example.com:8443/a"),
            ("https://user:hidden@example.com/a@b?c=/?://", "https://example.com/a@b"),
            ("https://[2001:db8::1]:1/", "https://[2001:db8::1]:1/"),
            ("no url?hidden", "no url"),
            ("", ""),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
