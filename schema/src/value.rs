//! Fixed encodings of small values: lengths before what they measure, numbers big-endian, every read checked.

use idl::ids::MessageId;

/// Writes a value part by part.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Starts with the number of the form, so that a later form can be told apart.
    pub(crate) fn form(form: u8) -> Self {
        Self(vec![form])
    }

    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.fixed(&number.to_be_bytes())
    }

    pub(crate) fn message_id(self, id: MessageId) -> Self {
        self.fixed(&id.to_bytes())
    }

    /// At most 64 KiB, as the callers' limits have it; what is longer is cut at a character, rather than made unreadable.
    pub(crate) fn text(self, text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.fixed(&length.to_be_bytes()).fixed(text.as_bytes())
    }

    pub(crate) fn optional_text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.fixed(&[1]).text(text),
            None => self.fixed(&[0]),
        }
    }

    pub(crate) fn build(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what [`Writer`] wrote. An error says what was expected; the caller adds where.
pub(crate) struct Reader<'a>(&'a [u8]);

pub(crate) type Read<T> = Result<T, String>;

impl<'a> Reader<'a> {
    /// Starts after the number of the form, which must be `form`.
    pub(crate) fn form(bytes: &'a [u8], form: u8) -> Read<Self> {
        match bytes.split_first() {
            Some((found, rest)) if *found == form => Ok(Self(rest)),
            Some((found, _)) => Err(format!("form {found} where {form} was expected")),
            None => Err("an empty value".to_owned()),
        }
    }

    pub(crate) fn fixed<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (bytes, rest) =
            self.0.split_first_chunk().ok_or_else(|| format!("{} bytes where {N} were expected", self.0.len()))?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(crate) fn number(&mut self) -> Read<u64> {
        self.fixed().map(u64::from_be_bytes)
    }

    pub(crate) fn message_id(&mut self) -> Read<MessageId> {
        self.fixed().map(|bytes| MessageId(u128::from_be_bytes(bytes)))
    }

    pub(crate) fn text(&mut self) -> Read<String> {
        let length = usize::from(u16::from_be_bytes(self.fixed()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or_else(|| "a text that is cut".to_owned())?;
        self.0 = rest;
        std::str::from_utf8(text).map(str::to_owned).map_err(|error| error.to_string())
    }

    pub(crate) fn optional_text(&mut self) -> Read<Option<String>> {
        match self.fixed()? {
            [0] => Ok(None),
            [1] => self.text().map(Some),
            [other] => Err(format!("mark {other} where 0 or 1 was expected")),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn end(self) -> Read<()> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("{} bytes after the end", self.0.len())) }
    }
}
