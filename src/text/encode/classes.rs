//! What the split patterns ask of a character: `\p{L}`, `\p{N}`, `\s`, a line end, or none of them.

use std::sync::LazyLock;

use regex_syntax::hir::{self, HirKind};

/// The classes are disjoint; `\s` is `Space` and `Newline` together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Other,
    Letter,
    Number,
    Space,
    /// `\r` and `\n`.
    Newline,
}

/// Where the Basic Multilingual Plane ends: a table below, a search among ranges above.
const BMP: u32 = 0x1_0000;

/// The class of every character, by the tables of the regex engine that `tokenizers` runs on.
pub(super) struct Classes {
    bmp: Box<[Class]>,
    /// (first, last, class), in order.
    above: Vec<(u32, u32, Class)>,
}

static CLASSES: LazyLock<Option<Classes>> = LazyLock::new(Classes::new);

impl Classes {
    /// The shared table; `None` if the regex engine was built without its Unicode tables.
    pub(super) fn shared() -> Option<&'static Self> {
        CLASSES.as_ref()
    }

    fn new() -> Option<Self> {
        let mut bmp = vec![Class::Other; BMP as usize].into_boxed_slice();
        let mut above = Vec::new();
        let classes = [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)];
        for (pattern, class) in classes {
            let hir = regex_syntax::parse(pattern).ok()?;
            let HirKind::Class(hir::Class::Unicode(ranges)) = hir.kind() else { return None };
            for range in ranges.ranges() {
                let (first, last) = (u32::from(range.start()), u32::from(range.end()));
                if first < BMP {
                    bmp[first as usize..=last.min(BMP - 1) as usize].fill(class);
                }
                if last >= BMP {
                    above.push((first.max(BMP), last, class));
                }
            }
        }
        bmp[usize::from(b'\r')] = Class::Newline;
        bmp[usize::from(b'\n')] = Class::Newline;
        above.sort_unstable_by_key(|range| range.0);
        Some(Self { bmp, above })
    }

    /// The class of a byte below 0x80.
    #[inline]
    pub(super) fn ascii(&self, byte: u8) -> Class {
        self.bmp[usize::from(byte)]
    }

    pub(super) fn of(&self, c: char) -> Class {
        let code = u32::from(c);
        if let Some(&class) = self.bmp.get(code as usize) {
            return class;
        }
        let next = self.above.partition_point(|range| range.0 <= code);
        match next.checked_sub(1).map(|index| self.above[index]) {
            Some((_, last, class)) if code <= last => class,
            _ => Class::Other,
        }
    }
}

/// Whether NFC leaves a text alone whose characters all pass: they neither decompose for good, nor
/// combine with what stands before them. False for many that NFC leaves alone, too.
pub(super) fn nfc_keeps(c: char) -> bool {
    matches!(c,
        '\0'..='\u{2ff}'
        | '\u{400}'..='\u{482}' // Cyrillic
        | '\u{2010}'..='\u{2027}' // dashes, quotation marks, bullets, ellipsis
        | '\u{3001}'..='\u{3029}' // CJK punctuation
        | '\u{3041}'..='\u{3096}' // Hiragana
        | '\u{30a1}'..='\u{30ff}' // Katakana
        | '\u{4e00}'..='\u{9fff}' // CJK ideographs
        | '\u{ac00}'..='\u{d7a3}' // Hangul syllables
        | '\u{ff01}'..='\u{ff5e}' // full-width forms
        | '\u{1f300}'..='\u{1faff}' // emoji
    )
}
