//! The picture of the dashboard is of this dashboard.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};

use super::dashboard::TEXT;

/// What a README may weigh.
const BYTES_MAX: usize = 300_000;
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

#[test]
fn the_picture_shows_this_dashboard() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/ringcast/board.png");
    let picture = fs::read(&file).unwrap_or_else(|error| panic!("board.png: {error}; run tests/picture"));
    let expected = digest(&SHA256, TEXT.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a text takes everything");
        hex
    });
    assert_eq!(
        told(&picture, "dashboard").as_deref(),
        Some(expected.as_str()),
        "board.png was made of another dashboard.json: run tests/picture"
    );
    assert!(picture.len() <= BYTES_MAX, "{} bytes, at most {BYTES_MAX}", picture.len());
}

/// A text of a PNG file by its keyword (W3C PNG, 11.3.3.2: the keyword, a zero byte, the text).
fn told(picture: &[u8], keyword: &str) -> Option<String> {
    let mut rest = picture.strip_prefix(SIGNATURE)?;
    loop {
        let (length, more) = rest.split_first_chunk::<4>()?;
        let (kind, more) = more.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let data = more.get(..length)?;
        let text = data.strip_prefix(keyword.as_bytes()).and_then(|data| data.strip_prefix(b"\0"));
        if let (b"tEXt", Some(text)) = (kind, text) {
            return String::from_utf8(text.to_vec()).ok();
        }
        // A checksum of four bytes ends each piece.
        rest = more.get(length + 4..)?;
    }
}

#[test]
fn texts_are_found_by_their_keyword() {
    let mut picture = SIGNATURE.to_vec();
    for (kind, data) in
        [(b"IHDR", &b"dashboard\0no"[..]), (b"tEXt", b"other\0no"), (b"tEXt", b"dashboard\0yes")]
    {
        picture.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        picture.extend([&kind[..], data, &[0; 4]].concat());
    }
    assert_eq!(told(&picture, "dashboard").as_deref(), Some("yes"));
    assert_eq!(told(&picture, "nothing"), None);
    assert_eq!(told(b"GIF89a", "dashboard"), None);
}
