//! An XML stream (RFC 6120 §4) read without I/O: bytes in, stream header and whole elements out.
//!
//! Both ends use it: the front for what devices say, the client core for what servers say. Entities, DTDs, comments and
//! processing instructions are refused (RFC 6120 §11.1); a stanza that grows over its limit is refused while it arrives,
//! before it is whole.

use minidom::{Element, rxml};
use rxml::error::EndOrError;
use rxml::{AttrMap, Event as XmlEvent, Namespace, Options, Parse as _, Parser, WithOptions as _};
use thiserror::Error;

mod check;

pub use check::check;

/// Namespace of the stream's own elements.
pub const NS_STREAM: &str = "http://etherx.jabber.org/streams";
/// Namespace of stanzas between client and server.
pub const NS_CLIENT: &str = "jabber:client";

/// How large things may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one element from its `<` to its end; also of the stream header.
    pub stanza_bytes_max: usize,
    /// Elements inside each other.
    pub depth_max: usize,
}

/// What the other side said.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The stream's opening tag.
    Opened(Header),
    /// A whole element at the top of the stream.
    Element(Element),
    /// The stream's closing tag.
    Closed,
}

/// The stream's opening tag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Whom the stream is to.
    pub to: Option<String>,
    /// Whom it is from.
    pub from: Option<String>,
    /// The stream's id.
    pub id: Option<String>,
    /// XMPP version, such as `1.0`.
    pub version: Option<String>,
}

/// Why the stream can't go on. [`XmlError::condition`] is the stream error to send.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum XmlError {
    /// An element or the header is larger than the limit.
    #[error("a stanza is larger than {limit} bytes")]
    TooLarge {
        /// The limit it met.
        limit: usize,
    },
    /// Elements are nested deeper than the limit.
    #[error("elements are nested deeper than {limit}")]
    TooDeep {
        /// The limit they met.
        limit: usize,
    },
    /// A DTD, an entity, a comment or a processing instruction.
    #[error("XML that XMPP forbids: {0}")]
    Restricted(String),
    /// Not in UTF-8, by its own declaration.
    #[error("the stream must be in UTF-8")]
    Encoding,
    /// Not well-formed.
    #[error("the XML is not well-formed: {0}")]
    NotWellFormed(String),
    /// The root is no `<stream:stream/>`.
    #[error("the stream must begin with <stream:stream/> in {NS_STREAM}, not with <{name}/> in {namespace:?}")]
    NotAStream {
        /// The root's name.
        name: String,
        /// The root's namespace.
        namespace: String,
    },
    /// Text between elements.
    #[error("there is text between the elements of the stream")]
    StrayText,
}

/// How a stream began.
#[derive(Debug)]
enum Beginning {
    /// It has not yet: the header as far as it was read.
    Header(Vec<u8>),
    /// With a header that declares what [`USUAL_HEADER`] declares.
    Usual,
    /// With another one.
    Other,
}

impl XmlError {
    /// The stream error's condition (RFC 6120 §4.9.3).
    pub const fn condition(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::TooDeep { .. } => "policy-violation",
            Self::Restricted(_) => "restricted-xml",
            Self::Encoding => "unsupported-encoding",
            Self::NotWellFormed(_) => "not-well-formed",
            Self::NotAStream { .. } => "invalid-namespace",
            Self::StrayText => "bad-format",
        }
    }
}

/// A stream header that declares the usual namespaces under the usual prefixes.
const USUAL_HEADER: &[u8] = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";

/// Reads one XML stream. A new stream (after STARTTLS or SASL) takes a new reader.
pub struct StreamReader {
    parser: Parser,
    limits: Limits,
    /// Open elements inside the stream; the last is the innermost.
    open: Vec<Element>,
    beginning: Beginning,
    /// Nothing was read since the last event at the top of the stream.
    is_at_rest: bool,
    /// Bytes since the last event at the top of the stream.
    taken_bytes: usize,
    /// Those bytes, or those since the XML declaration, are white space.
    is_blank: bool,
}

impl StreamReader {
    /// A reader at the beginning of a stream.
    pub fn new(limits: Limits) -> Self {
        let options = Options { max_token_length: limits.stanza_bytes_max.max(64), ..Options::default() };
        Self {
            parser: Parser::with_options(options),
            limits,
            open: Vec::new(),
            beginning: Beginning::Header(Vec::new()),
            is_at_rest: false,
            taken_bytes: 0,
            is_blank: true,
        }
    }

    /// A reader inside a stream whose header declares `jabber:client` as the default namespace and the stream's own under the
    /// prefix `stream`, and nothing else.
    pub fn inside(limits: Limits) -> Self {
        let mut reader =
            Self::new(Limits { stanza_bytes_max: limits.stanza_bytes_max.max(USUAL_HEADER.len()), ..limits });
        let opened = reader.read(&mut &*USUAL_HEADER);
        debug_assert!(matches!(opened, Ok(Some(Event::Opened(_)))), "the usual header can be read");
        reader.limits = limits;
        reader
    }

    /// True if a reader that [`StreamReader::inside`] makes would read on as this one does: it is between elements, and its
    /// header declared the same.
    pub fn is_like_inside(&self) -> bool {
        matches!(self.beginning, Beginning::Usual) && self.is_at_rest
    }

    /// Other limits from the next element on. Attributes keep the length limit that the stream began with.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// True if no element is half read, nor its first tag.
    pub fn is_between_elements(&self) -> bool {
        self.open.is_empty() && self.taken_bytes == 0
    }

    /// Reads from `bytes`, which shrinks by what was read, up to the next event. `None` means that all bytes were read
    /// and more are needed. After an error the stream is over.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, XmlError> {
        loop {
            if self.in_stream() && self.open.is_empty() && self.taken_bytes == 0 {
                // White space between stanzas keeps connections alive (RFC 6120 §4.6.1) and is nothing to keep.
                *bytes = bytes.trim_ascii_start();
            }
            // The parser would wait for the text's end, which may never come: it only says what it has still to say. What `&`
            // begins is its to judge.
            let is_text =
                self.is_blank && bytes.trim_ascii_start().first().is_some_and(|first| !matches!(first, b'<' | b'&'));
            // Never hand the parser more than the rest of the limit: it can't be made to buffer beyond it.
            let rest = self.limits.stanza_bytes_max.saturating_sub(self.taken_bytes);
            let (window, cut) = match *bytes {
                bytes if is_text => (&bytes[..0], false),
                bytes if bytes.len() > rest => (&bytes[..rest], true),
                bytes => (bytes, false),
            };
            let mut unread = window;
            let parsed = self.parser.parse(&mut unread, false);
            let taken = window.len() - unread.len();
            if let Beginning::Header(header) = &mut self.beginning {
                header.extend_from_slice(&bytes[..taken]);
            }
            self.is_at_rest &= taken == 0;
            self.is_blank &= bytes[..taken].trim_ascii_start().is_empty();
            *bytes = &bytes[taken..];
            self.taken_bytes += taken;
            let event = match parsed {
                Ok(Some(event)) => event,
                Err(EndOrError::NeedMoreData) if cut && unread.is_empty() => {
                    return Err(XmlError::TooLarge { limit: self.limits.stanza_bytes_max });
                }
                Ok(None) | Err(EndOrError::NeedMoreData) if is_text => return Err(self.stray_text()),
                Ok(None) | Err(EndOrError::NeedMoreData) => return Ok(None),
                Err(EndOrError::Error(error)) => return Err(xml_error(error)),
            };
            if let Some(event) = self.take(event)? {
                self.taken_bytes = 0;
                self.is_blank = true;
                self.is_at_rest = true;
                return Ok(Some(event));
            }
        }
    }

    fn in_stream(&self) -> bool {
        !matches!(self.beginning, Beginning::Header(_))
    }

    fn stray_text(&self) -> XmlError {
        if self.in_stream() {
            XmlError::StrayText
        } else {
            XmlError::NotWellFormed("text before the first element".to_owned())
        }
    }

    fn take(&mut self, event: XmlEvent) -> Result<Option<Event>, XmlError> {
        match event {
            XmlEvent::XmlDeclaration(..) => {
                self.is_blank = true;
                Ok(None)
            }
            XmlEvent::StartElement(_, (namespace, name), attributes) => {
                if let Beginning::Header(written) = &self.beginning {
                    if namespace.as_str() != NS_STREAM || name.as_str() != "stream" {
                        let (name, namespace) = (name.to_string(), namespace.as_str().to_owned());
                        return Err(XmlError::NotAStream { name, namespace });
                    }
                    self.beginning = if declares_the_usual(written) { Beginning::Usual } else { Beginning::Other };
                    return Ok(Some(Event::Opened(header(&attributes))));
                }
                if self.open.len() >= self.limits.depth_max {
                    return Err(XmlError::TooDeep { limit: self.limits.depth_max });
                }
                let mut element = Element::bare(name.as_str(), namespace.as_str());
                *element.attrs_mut() = attributes;
                self.open.push(element);
                Ok(None)
            }
            XmlEvent::Text(_, text) => match self.open.last_mut() {
                Some(element) => {
                    element.append_text(text);
                    Ok(None)
                }
                None if text.bytes().all(|byte| byte.is_ascii_whitespace()) => {
                    self.taken_bytes = 0;
                    self.is_blank = true;
                    Ok(None)
                }
                None => Err(XmlError::StrayText),
            },
            XmlEvent::EndElement(_) => match (self.open.pop(), self.open.last_mut()) {
                (Some(element), Some(parent)) => {
                    parent.append_child(element);
                    Ok(None)
                }
                (Some(element), None) => Ok(Some(Event::Element(element))),
                (None, _) => Ok(Some(Event::Closed)),
            },
        }
    }
}

impl std::fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamReader")
            .field("limits", &self.limits)
            .field("depth", &self.open.len())
            .finish_non_exhaustive()
    }
}

/// Writes a stream's opening tag.
pub fn write_header(out: &mut Vec<u8>, header: &Header) {
    out.extend_from_slice(b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='");
    out.extend_from_slice(NS_STREAM.as_bytes());
    out.push(b'\'');
    for (name, value) in [("to", &header.to), ("from", &header.from), ("id", &header.id), ("version", &header.version)]
    {
        if let Some(value) = value {
            out.extend_from_slice(format!(" {name}='{}'", escape_attribute(value)).as_bytes());
        }
    }
    out.push(b'>');
}

/// Writes a stream's closing tag.
pub fn write_footer(out: &mut Vec<u8>) {
    out.extend_from_slice(b"</stream:stream>");
}

/// Writes an element at the top of the stream.
pub fn write_element(out: &mut Vec<u8>, element: &Element) {
    element.write_to(out).expect("an element can be written to memory");
}

/// Escapes text for an attribute between apostrophes or quotes.
pub fn escape_attribute(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// True if a header that could be read declares what [`USUAL_HEADER`] declares. One that hides it is told wrongly, which
/// only those notice who wrote it so.
fn declares_the_usual(header: &[u8]) -> bool {
    let Ok(header) = std::str::from_utf8(header) else { return false };
    let declares = |name: &str, value: &str| {
        header.contains(&format!(" {name}='{value}'")) || header.contains(&format!(" {name}=\"{value}\""))
    };
    header.matches("xmlns").count() == 2
        && header.contains("<stream:stream ")
        && declares("xmlns", NS_CLIENT)
        && declares("xmlns:stream", NS_STREAM)
}

fn header(attributes: &AttrMap) -> Header {
    let attribute = |name: &str| attributes.get(&Namespace::NONE, name).cloned();
    Header { to: attribute("to"), from: attribute("from"), id: attribute("id"), version: attribute("version") }
}

fn xml_error(error: rxml::Error) -> XmlError {
    match error {
        rxml::Error::RestrictedXml(what) if what.contains("encoding") => XmlError::Encoding,
        rxml::Error::RestrictedXml(_) | rxml::Error::UndeclaredEntity => XmlError::Restricted(error.to_string()),
        // `<!` that begins neither a comment nor CDATA begins a DTD, which rxml doesn't know at all.
        rxml::Error::InvalidSyntax(what) if what.contains("cdata or comment") => {
            XmlError::Restricted("document type declarations".to_owned())
        }
        other => XmlError::NotWellFormed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { stanza_bytes_max: 256, depth_max: 4 };
    const OPEN: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                        xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0'>";

    fn read_all(pieces: &[&[u8]]) -> Result<Vec<Event>, XmlError> {
        let mut reader = StreamReader::new(LIMITS);
        let mut events = Vec::new();
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(event) = reader.read(&mut bytes)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn error_of(text: &str) -> XmlError {
        read_all(&[OPEN.as_bytes(), text.as_bytes()]).expect_err(text)
    }

    #[test]
    fn a_stream_is_a_header_elements_and_an_end() {
        let text = format!("{OPEN}<a xmlns='x' b='c'>d<e/>&lt;</a>  <f/></stream:stream>");
        let events = read_all(&[text.as_bytes()]).expect("a stream");
        let [Event::Opened(header), Event::Element(a), Event::Element(f), Event::Closed] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!(header.to.as_deref(), Some("example.org"));
        assert_eq!(header.version.as_deref(), Some("1.0"));
        assert!(a.is("a", "x") && a.attr("b") == Some("c") && a.text() == "d<" && a.has_child("e", "x"));
        assert!(f.is("f", NS_CLIENT));
    }

    #[test]
    fn text_at_the_top_is_refused_before_its_end() {
        assert_eq!(error_of("a word that goes on"), XmlError::StrayText);
        assert_eq!(error_of("<a/> a word that goes on"), XmlError::StrayText);
        for other in ["GET / HTTP/1.1\r\n\r\n", " a word", "{\"a\": 1}"] {
            assert_eq!(read_all(&[other.as_bytes()]).expect_err(other).condition(), "not-well-formed", "{other}");
            let bytes: Vec<&[u8]> = other.as_bytes().chunks(1).collect();
            assert_eq!(read_all(&bytes).expect_err(other).condition(), "not-well-formed", "{other} byte by byte");
        }
        let ended = OPEN.replacen("version='1.0'>", "version='1.0'/>", 1) + "text";
        let (mut reader, mut unread) = (StreamReader::new(LIMITS), ended.as_bytes());
        assert!(matches!(reader.read(&mut unread), Ok(Some(Event::Opened(_)))));
        assert_eq!(reader.read(&mut unread), Ok(Some(Event::Closed)), "the end comes before what is behind it");
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Vec::new();
        let header = Header { from: Some("a'b<".into()), id: Some("1".into()), ..Header::default() };
        write_header(&mut out, &header);
        let element: Element = "<a xmlns='x' b='&lt;&apos;'>t</a>".parse().expect("an element");
        write_element(&mut out, &element);
        write_footer(&mut out);
        let events = read_all(&[&out]).expect("a stream");
        assert_eq!(events, [Event::Opened(header), Event::Element(element), Event::Closed]);
    }

    #[test]
    fn a_stanza_over_its_limit_is_refused_before_it_is_whole() {
        assert_eq!(error_of(&format!("<a>{}", "x".repeat(300))), XmlError::TooLarge { limit: 256 });
        assert_eq!(error_of(&"<a>".repeat(100)), XmlError::TooDeep { limit: 4 });
        let attribute = format!("<a b='{}", "x".repeat(300));
        assert!(matches!(error_of(&attribute), XmlError::TooLarge { .. } | XmlError::Restricted(_)));
    }

    #[test]
    fn many_small_stanzas_do_not_add_up() {
        let events = read_all(&[OPEN.as_bytes(), "<a>b</a> ".repeat(500).as_bytes()]).expect("a stream");
        assert_eq!(events.len(), 501);
        let blanks = " ".repeat(5000);
        read_all(&[OPEN.as_bytes(), blanks.as_bytes(), b"<a/>"]).expect("white space keeps alive");
    }

    #[test]
    fn forbidden_xml_is_refused() {
        assert_eq!(error_of("<a>&xxe;</a>").condition(), "restricted-xml");
        assert_eq!(error_of("<?target data?>").condition(), "restricted-xml");
        assert_eq!(error_of("<!-- comment -->").condition(), "restricted-xml");
        let dtd = "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]>";
        assert_eq!(read_all(&[dtd.as_bytes()]).expect_err("a DTD").condition(), "restricted-xml");
        let utf16 = "<?xml version='1.0' encoding='UTF-16'?>";
        assert_eq!(read_all(&[utf16.as_bytes()]).expect_err("an encoding"), XmlError::Encoding);
        assert_eq!(error_of("<a></b>").condition(), "not-well-formed");
        assert_eq!(error_of("text<a/>").condition(), "bad-format");
        assert_eq!(read_all(&[b"<a/>"]).expect_err("no stream").condition(), "invalid-namespace");
    }

    #[test]
    fn a_reader_at_rest_in_a_usual_stream_can_be_replaced_by_another() {
        let mut reader = StreamReader::new(LIMITS);
        let mut whole = format!("{OPEN}<a b='c'>d<e/></a> <f/>").into_bytes();
        whole.push(b'<');
        let mut rests = Vec::new();
        for byte in &whole {
            reader.read(&mut std::slice::from_ref(byte)).expect("a stream");
            rests.push(reader.is_like_inside());
        }
        let at_rest: Vec<_> = rests.iter().zip(&whole).filter(|(rest, _)| **rest).map(|(_, byte)| *byte).collect();
        assert_eq!(at_rest, *b">> >", "behind the header, each element, and white space");
        let mut other = StreamReader::inside(LIMITS);
        assert!(other.is_like_inside());
        let mut rest: &[u8] = b"<a/></stream:stream>";
        assert!(matches!(other.read(&mut rest), Ok(Some(Event::Element(a))) if a.is("a", NS_CLIENT)));
        assert_eq!(other.read(&mut rest), Ok(Some(Event::Closed)));
    }

    #[test]
    fn a_stream_with_namespaces_of_its_own_keeps_its_reader() {
        for header in [
            "<s:stream xmlns='jabber:client' xmlns:s='http://etherx.jabber.org/streams'>",
            "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams'>",
            "<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>",
            "<stream:stream xmlns='jabber:client' xmlns:x='y' xmlns:stream='http://etherx.jabber.org/streams'>",
        ] {
            let mut reader = StreamReader::new(LIMITS);
            assert!(matches!(reader.read(&mut header.as_bytes()), Ok(Some(Event::Opened(_)))), "{header}");
            assert!(!reader.is_like_inside(), "{header}");
        }
        let mut reader = StreamReader::new(LIMITS);
        let quoted = r#"<stream:stream xmlns="jabber:client" to="x" xmlns:stream="http://etherx.jabber.org/streams">"#;
        assert!(matches!(reader.read(&mut quoted.as_bytes()), Ok(Some(Event::Opened(_)))));
        assert!(reader.is_like_inside());
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_it_reads_the_same(cuts in proptest::collection::vec(0usize..300, 0..8)) {
            let text = format!("{OPEN}<a xmlns='x'>d<e f='g'/>&lt;</a> <h>ü</h></stream:stream>");
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read_all(&pieces), read_all(&[bytes]));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read_all(&[&bytes]);
            let _ = read_all(&[OPEN.as_bytes(), &bytes]);
        }
    }
}
