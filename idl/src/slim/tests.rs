use std::fmt::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { stanza_bytes_max: 1024, depth_max: 8 };
const FRAME_BYTES_MAX: usize = 1024;

fn written(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        frame.write(&mut out);
    }
    out
}

fn read_pieces<'a>(pieces: &[&'a [u8]]) -> Result<Vec<Frame<'a>>, SlimError> {
    let mut reader = Reader::new();
    let mut frames = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while let Some(frame) = reader.read(&mut rest, FRAME_BYTES_MAX)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn read(bytes: &[u8]) -> Result<Vec<Frame<'_>>, SlimError> {
    read_pieces(&[bytes])
}

fn payload(number: u32, bytes: &[u8]) -> Frame<'_> {
    Frame::Payload { number, bytes: bytes.into() }
}

/// Every layout that the document shows.
fn layouts() -> Vec<(&'static str, Vec<u8>, Option<Frame<'static>>)> {
    let error = "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
    vec![
        ("ping", vec![0x01, 0x00], Some(Frame::Ping)),
        ("pong", vec![0x01, 0x01], Some(Frame::Pong)),
        ("payload on channel 5: \"hi\"", b"\x04\x02\x05hi".to_vec(), Some(payload(5, b"hi"))),
        ("payload on channel 300: nothing", vec![0x03, 0x02, 0xac, 0x02], Some(payload(300, b""))),
        (
            "payload on channel 5: 126 bytes 0",
            [&[0x80, 0x01, 0x02, 0x05][..], &[0; 126]].concat(),
            Some(payload(5, &[0; 126])),
        ),
        ("stanza: <presence/>", b"\x0c\x03<presence/>".to_vec(), Some(Frame::Stanza("<presence/>".into()))),
        ("ack request", vec![0x01, 0x04], Some(Frame::AckRequest)),
        ("ack: 7", vec![0x02, 0x05, 0x07], Some(Frame::Ack(7))),
        ("ack: 4294967295", vec![0x06, 0x05, 0xff, 0xff, 0xff, 0xff, 0x0f], Some(Frame::Ack(u32::MAX))),
        ("end", vec![0x01, 0x06], Some(Frame::End("".into()))),
        ("end: conflict", [b"\x55\x06", error.as_bytes()].concat(), Some(Frame::End(error.into()))),
        ("unknown kind 127, skipped", vec![0x03, 0x7f, 0xaa, 0xbb], None),
    ]
}

#[test]
fn each_layout_of_the_document_is_what_is_written_and_read() {
    for (name, bytes, frame) in layouts() {
        let frames: Vec<Frame<'_>> = frame.into_iter().collect();
        assert_eq!(read(&bytes).as_ref(), Ok(&frames), "{name}");
        if !frames.is_empty() {
            assert_eq!(written(&frames), bytes, "{name}");
        }
    }
}

#[test]
fn the_document_shows_these_layouts() {
    let mut shown = String::new();
    for (name, bytes, _) in layouts() {
        let mut hex: Vec<String> = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        if bytes.len() > hex.len() {
            hex.push(format!("… ({} bytes)", bytes.len()));
        }
        writeln!(shown, "{name:<34} {}", hex.join(" ")).expect("written");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document = std::fs::read_to_string(&path).expect("docs/protocol.md");
    let (begin, end) = ("<!-- slim-layouts: begin -->\n```text\n", "```\n<!-- slim-layouts: end -->");
    let (before, rest) = document.split_once(begin).expect("the mark where they begin");
    let (there, after) = rest.split_once(end).expect("the mark where they end");
    if there != shown {
        #[expect(clippy::disallowed_methods, reason = "how tests of generated files are told to write them")]
        let update = std::env::var("UPDATE").is_ok();
        assert!(update, "docs/protocol.md shows other layouts; run the test with UPDATE=1:\n{shown}");
        std::fs::write(&path, format!("{before}{begin}{shown}{end}{after}")).expect("the document can be written");
    }
}

#[test]
fn heartbeats_and_requests_have_two_bytes() {
    for (frame, bytes) in
        [(Frame::Ping, PING), (Frame::Pong, PONG), (Frame::AckRequest, ACK_REQUEST), (Frame::End("".into()), CLOSE)]
    {
        assert_eq!(written(&[frame]), bytes);
    }
}

#[test]
fn a_payload_of_100_bytes_has_125_bytes_inside_tls() {
    // A record of TLS 1.3: 5 bytes of header, 1 of content type, 16 of tag (RFC 8446 §5.2).
    const RECORD_BYTES: usize = 5 + 1 + 16;
    assert_eq!(written(&[payload(crate::channel::PUSH, &[0; 100])]).len() + RECORD_BYTES, 125);
    let worst = written(&[payload(65_535, &[0; 100])]).len();
    assert!(worst <= 106 && worst + RECORD_BYTES <= 140, "{worst} bytes");
    let large = written(&[payload(crate::channel::PUSH, &[0; 4096])]).len();
    assert_eq!(large, 4096 + 4, "two bytes of length, up to 16,381 of payload");
}

#[test]
fn at_rest_a_reader_has_no_heap_memory_and_is_as_small_as_a_vector() {
    assert_eq!(size_of::<Reader>(), size_of::<Vec<u8>>());
    let frame = written(&[payload(5, &[1; 200])]);
    let mut reader = Reader::new();
    let (first, second) = frame.split_at(150);
    assert_eq!(reader.read(&mut &*first, FRAME_BYTES_MAX), Ok(None));
    assert!(!reader.is_between_frames() && reader.heap_bytes() == 150);
    assert_eq!(reader.read(&mut &*second, FRAME_BYTES_MAX), Ok(Some(payload(5, &[1; 200]))));
    assert!(reader.is_between_frames() && reader.heap_bytes() == 0);
}

#[test]
fn a_frame_that_comes_whole_is_not_copied() {
    let bytes = written(&[payload(5, b"one"), Frame::Stanza("<a/>".into())]);
    let frames = read(&bytes).expect("two frames");
    assert!(matches!(frames[0], Frame::Payload { bytes: Cow::Borrowed(_), .. }));
    assert!(matches!(frames[1], Frame::Stanza(Cow::Borrowed(_))));
}

#[test]
fn a_frame_over_the_limit_is_refused_from_its_length_alone() {
    let limit = 1024;
    let mut reader = Reader::new();
    // 1022 and its two bytes of length are 1024; one more is too many.
    assert_eq!(reader.read(&mut [0xfe, 0x07].as_slice(), limit), Ok(None));
    assert_eq!(Reader::new().read(&mut [0xff, 0x07].as_slice(), limit), Err(SlimError::TooLarge { limit }));
    let claim = [0xff, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(Reader::new().read(&mut claim.as_slice(), limit), Err(SlimError::TooLarge { limit }));
    // In pieces too, and also if the limit was lowered meanwhile.
    for byte in &claim[..4] {
        let mut fresh = Reader::new();
        assert_eq!(fresh.read(&mut std::slice::from_ref(byte), limit), Ok(None));
    }
    assert_eq!(reader.read(&mut [3].as_slice(), 100), Err(SlimError::TooLarge { limit: 100 }));
    assert_eq!(SlimError::TooLarge { limit }.condition(), "policy-violation");
}

#[test]
fn memory_follows_what_has_come_and_not_what_is_claimed() {
    let limit = 1 << 20;
    let frame = written(&[payload(5, &vec![7; limit - 100])]);
    let mut reader = Reader::new();
    let (mut given, mut found) = (0, false);
    for piece in frame.chunks(1000) {
        given += piece.len();
        found = reader.read(&mut &*piece, limit).expect("a frame").is_some();
        assert!(reader.heap_bytes() <= (2 * given).min(frame.len()), "{} of {given}", reader.heap_bytes());
    }
    assert!(found && reader.heap_bytes() == 0);
}

#[test]
fn what_is_not_the_one_encoding_is_refused() {
    let cases: [(&[u8], SlimError); 16] = [
        (&[0x00], SlimError::Empty),
        (&[0x81, 0x00, 0x00], SlimError::Varint),
        (&[0x80, 0x80, 0x00], SlimError::Varint),
        (&[0x80, 0x80, 0x80, 0x80, 0x10], SlimError::Varint),
        (&[0xff, 0xff, 0xff, 0xff, 0xff], SlimError::Varint),
        (&[0x02, 0x00, 0x00], SlimError::Body { kind: 0 }),
        (&[0x02, 0x01, 0x00], SlimError::Body { kind: 1 }),
        (&[0x02, 0x04, 0x00], SlimError::Body { kind: 4 }),
        (&[0x01, 0x02], SlimError::Body { kind: 2 }),
        (&[0x02, 0x02, 0x85], SlimError::Body { kind: 2 }),
        (&[0x03, 0x02, 0x85, 0x00], SlimError::Varint),
        (&[0x02, 0x02, 0x00], SlimError::Channel),
        (&[0x04, 0x02, 0x80, 0x80, 0x04], SlimError::Channel),
        (&[0x01, 0x05], SlimError::Body { kind: 5 }),
        (&[0x03, 0x05, 0x07, 0x07], SlimError::Body { kind: 5 }),
        (&[0x02, 0x03, 0xff], SlimError::Text { kind: 3 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(read(bytes).as_ref(), Err(&error), "{bytes:x?}");
        assert_eq!(read_pieces(&bytes.chunks(1).collect::<Vec<_>>()), Err(error), "{bytes:x?} byte by byte");
    }
    assert_eq!(SlimError::Varint.condition(), "bad-format");
}

#[test]
fn unknown_kinds_are_skipped_and_bounded() {
    let mut bytes = Vec::new();
    for kind in 7..=255 {
        bytes.extend_from_slice(&[0x03, kind, 0, 0, 0x01, kind]);
    }
    bytes.extend_from_slice(&PING);
    assert_eq!(read(&bytes), Ok(vec![Frame::Ping]));
    assert_eq!(read(&[0xff, 0x07, 0xf0]), Err(SlimError::TooLarge { limit: FRAME_BYTES_MAX }));
}

#[test]
fn a_text_is_one_element_in_the_namespaces_of_the_stream() {
    let read = |text: &str| element(text, LIMITS);
    let iq = read("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>").expect("an element");
    assert!(iq.is("iq", xml_client()) && iq.has_child("ping", "urn:xmpp:ping"));
    assert!(read("<enable xmlns='urn:xmpp:sm:3'/>").is_ok_and(|enable| enable.ns() == "urn:xmpp:sm:3"));
    let error = read("<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>");
    assert!(error.is_ok_and(|error| error.is("error", crate::xml::NS_STREAM)));
    for not_one in ["", " ", "text", " <a/>", "<a/> ", "<a/><b/>", "<a>", "<a/", "</stream:stream>"] {
        assert_eq!(read(not_one), Err(SlimError::NotOneElement), "{not_one:?}");
    }
    for (forbidden, condition) in [
        ("<a></b>", "not-well-formed"),
        ("<!-- a -->", "restricted-xml"),
        ("<?xml version='1.0'?><a/>", "restricted-xml"),
        ("<a>&xxe;</a>", "restricted-xml"),
    ] {
        assert_eq!(read(forbidden).expect_err(forbidden).condition(), condition, "{forbidden}");
    }
    let small = Limits { stanza_bytes_max: 4, depth_max: 1 };
    assert!(element("<a/>", small).is_ok());
    assert_eq!(element("<ab/>", small), Err(SlimError::Xml(XmlError::TooLarge { limit: 4 })));
    let deep = Limits { stanza_bytes_max: 100, depth_max: 1 };
    assert_eq!(element("<a><b/></a>", deep), Err(SlimError::Xml(XmlError::TooDeep { limit: 1 })));
}

fn xml_client() -> &'static str {
    crate::xml::NS_CLIENT
}

#[test]
fn the_byte_behind_the_switch_belongs_to_the_first_frame() {
    for switch in [SWITCH, "<slim xmlns='urn:campanile:slim:1'></slim>"] {
        for first in [PING.as_slice(), b"\x20\x03<message to='a'><subject/></message>"] {
            let bytes = [CONTEXT.as_bytes(), b" ", switch.as_bytes(), first].concat();
            for cut in 0..=bytes.len() {
                let mut reader = StreamReader::new(LIMITS);
                let (mut before, after) = bytes.split_at(cut);
                let mut events = Vec::new();
                while events.len() < 2
                    && let Some(event) = reader.read(&mut before).expect("XML")
                {
                    events.push(event);
                }
                let mut rest = [before, after].concat();
                if events.len() < 2 {
                    let mut unread = rest.as_slice();
                    while events.len() < 2 {
                        events.push(reader.read(&mut unread).expect("XML").expect("an event"));
                    }
                    rest = unread.to_vec();
                }
                assert!(matches!(&events[1], Event::Element(slim) if slim.is("slim", NS)));
                assert_eq!(rest, first, "cut at {cut}");
            }
        }
    }
}

fn any_frame() -> impl Strategy<Value = Frame<'static>> {
    prop_oneof![
        Just(Frame::Ping),
        Just(Frame::Pong),
        Just(Frame::AckRequest),
        any::<u32>().prop_map(Frame::Ack),
        (1u32..=65_535, proptest::collection::vec(any::<u8>(), 0..290))
            .prop_map(|(number, bytes)| Frame::Payload { number, bytes: bytes.into() }),
        ".{0,60}".prop_map(|text| Frame::Stanza(text.into())),
        ".{0,60}".prop_map(|text| Frame::End(text.into())),
    ]
}

/// Bytes that are nearly frames: some are, and some are cut, changed or of unknown kinds.
fn nearly_frames() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => any_frame().prop_map(|frame| written(&[frame])),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
        1 => (7u8.., proptest::collection::vec(any::<u8>(), 0..100)).prop_map(|(kind, body)| {
            let mut out = Vec::new();
            write_head(&mut out, kind, body.len());
            out.extend(body);
            out
        }),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn frames_read_back_however_they_are_cut(
        frames in proptest::collection::vec(any_frame(), 0..6),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
    ) {
        let bytes = written(&frames);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(read_pieces(&pieces), Ok(frames));
    }

    #[test]
    fn a_number_has_one_encoding_and_it_is_the_shortest(number: u32) {
        let mut out = Vec::new();
        write_varint(&mut out, u64::from(number));
        prop_assert_eq!(out.len(), varint_bytes(u64::from(number)));
        prop_assert_eq!(read_varint(&out), Ok(Some((number, out.len()))));
        for cut in 0..out.len() {
            prop_assert_eq!(read_varint(&out[..cut]), Ok(None));
        }
    }

    #[test]
    fn bytes_that_are_read_as_a_number_are_its_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
        if let Ok(Some((number, length))) = read_varint(&bytes) {
            let mut out = Vec::new();
            write_varint(&mut out, u64::from(number));
            prop_assert_eq!(out.as_slice(), &bytes[..length]);
        }
    }

    #[test]
    fn no_bytes_break_a_promise(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }

    #[test]
    fn no_bytes_that_are_nearly_frames_break_a_promise(bytes in nearly_frames()) {
        check(&bytes);
    }

    #[test]
    fn no_text_makes_the_element_reader_panic(text in "[<>/a-c =' &;!?\\[\\]-]{0,40}") {
        let _ = element(&text, LIMITS);
    }
}
