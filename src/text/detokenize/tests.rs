//! The promises of the detokenizer, checked against whole decodes by the tokenizer itself.

use super::*;
use crate::text::testing::{
    self, METASPACE_DECODER, PIECES, Rng, SPM_DECODER, WORDPIECE_DECODER, spm,
};

/// Text that breaks careless detokenizers.
const TORTURE: [&str; 9] = [
    "The capital of France is Paris.",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb",
    "日本語と中文和한국어",
    "e\u{301}a\u{308}\u{323} Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L",
    " leading and trailing ",
    "   \n\n\t  ",
    "مرحبا بالعالم שלום",
    "\u{fffd} a real replacement character \u{fffd}",
    "<0x41> literal, \u{0} nul, \u{10ffff} last",
];

/// All that comes out of a stream of tokens.
fn stream(model: &TextModel, tokens: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(model, skip_special);
    let mut out = String::new();
    for &token in tokens {
        detokenizer.push(model, token, &mut out);
    }
    detokenizer.finish(model, &mut out);
    out
}

#[test]
fn byte_tokens_become_the_text_they_came_from() {
    let model = testing::shipped();
    for text in TORTURE {
        let tokens = model.encode(text, false).unwrap();
        assert_eq!(stream(&model, &tokens, true), text);
        let mut detokenizer = Detokenizer::new(&model, true);
        let mut out = String::new();
        for (index, &token) in tokens.iter().enumerate() {
            detokenizer.push(&model, token, &mut out);
            assert!(text.starts_with(&out), "{text:?}, token {index}: {out:?}");
        }
    }
}

#[test]
fn random_byte_level_tokens_give_what_a_whole_decode_gives() {
    let model = testing::shipped();
    let mut rng = Rng::new();
    for _ in 0..3_000 {
        let length = rng.below(24);
        // Ids around the single bytes come often, so that broken characters do.
        let tokens: Vec<u32> = (0..length)
            .map(|_| if rng.below(2) == 0 { rng.below(2_050) } else { 6 + rng.below(256) } as u32)
            .collect();
        for skip_special in [false, true] {
            let whole = model.tokenizer.decode(&tokens, skip_special).unwrap();
            assert_eq!(stream(&model, &tokens, skip_special), whole, "{tokens:?}");
        }
    }
}

/// What a stream of byte tokens promises, in the plainest words: each run of bytes gives its
/// characters up to the first byte that cannot be one, then U+FFFD for each byte.
fn naive_pieces(model: &TextModel, tokens: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = tokens;
    while let [token, after @ ..] = rest {
        if !model.table.is_one_byte(*token) {
            text.push_str(&model.token_text(*token));
            rest = after;
            continue;
        }
        let run = rest.iter().take_while(|token| model.table.is_one_byte(**token)).count();
        let bytes: Vec<u8> =
            rest[..run].iter().flat_map(|token| model.token_bytes(*token).to_vec()).collect();
        let valid = match from_utf8(&bytes) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        text.push_str(from_utf8(&bytes[..valid]).unwrap());
        text.extend(std::iter::repeat_n('\u{fffd}', bytes.len() - valid));
        rest = &rest[run..];
    }
    text
}

#[test]
fn random_sentencepiece_tokens_give_what_a_whole_decode_gives() {
    let mut rng = Rng::new();
    let model = spm(&PIECES, SPM_DECODER);
    let mut good_runs = 0;
    for _ in 0..5_000 {
        let length = rng.below(12);
        let tokens: Vec<u32> = (0..length)
            .map(|_| match rng.below(4) {
                0 => 3 + rng.below(256),
                // Bytes of "é日👍" in the order they come, for runs that are characters.
                1 => 3 + [0xc3, 0xa9, 0xe6, 0x97, 0xa5, 0xf0, 0x9f, 0x91, 0x8d][rng.below(9)],
                _ => 259 + rng.below(PIECES.len()),
            } as u32)
            .collect();
        let streamed = stream(&model, &tokens, true);
        let naive = naive_pieces(&model, &tokens);
        assert_eq!(streamed, naive.strip_prefix(' ').unwrap_or(&naive), "{tokens:?}");
        let whole = model.tokenizer.decode(&tokens, true).unwrap();
        if !whole.contains('\u{fffd}') {
            assert_eq!(streamed, whole, "{tokens:?}");
            good_runs += 1;
        }
    }
    assert!(good_runs > 500, "{good_runs} texts without a broken run test too little");
}

#[test]
fn sentencepiece_text_comes_back_also_where_characters_are_byte_tokens() {
    for decoder in [SPM_DECODER, METASPACE_DECODER, WORDPIECE_DECODER] {
        let model = spm(&PIECES, decoder);
        for text in TORTURE {
            let tokens = model.encode(text, true).unwrap();
            let whole = model.decode(&tokens, true).unwrap();
            assert_eq!(stream(&model, &tokens, true), whole, "{decoder}");
            if decoder == SPM_DECODER && !text.contains("<0x41>") {
                assert_eq!(whole, text);
            }
        }
    }
}

#[test]
fn random_tokens_of_other_decoders_give_what_a_whole_decode_gives() {
    let mut rng = Rng::new();
    for decoder in [METASPACE_DECODER, WORDPIECE_DECODER] {
        let model = spm(&["a", "##b", "▁c", "##▁d", "日"], decoder);
        for _ in 0..1_000 {
            let length = rng.below(12);
            let tokens: Vec<u32> = (0..length).map(|_| 259 + rng.below(5) as u32).collect();
            let whole = model.tokenizer.decode(&tokens, true).unwrap();
            assert_eq!(stream(&model, &tokens, true), whole, "{tokens:?}");
        }
    }
}

#[test]
fn output_after_a_prompt_keeps_its_leading_space_and_ends_an_open_character() {
    let model = spm(&PIECES, SPM_DECODER);
    let (bos, a, the) = (1, 259 + 2, 259 + 4);
    let long: Vec<u32> = std::iter::repeat_n(bos, 100).collect();
    // (prompt, output, text)
    let cases: [(&[u32], &[u32], &str); 6] = [
        (&[bos, a], &[the, the], " the the"),
        (&[bos], &[the, the], "the the"),
        (&[], &[the], "the"),
        (&long, &[the], " the"),
        (&[bos, a, 3 + 0xc3], &[3 + 0xa9, the], "é the"),
        (&[bos, a, 3 + 0xc3], &[the], "\u{fffd} the"),
    ];
    for (prompt, output, text) in cases {
        let mut detokenizer = Detokenizer::after_prompt(&model, prompt, true);
        let mut out = String::new();
        for &token in output {
            detokenizer.push(&model, token, &mut out);
        }
        assert_eq!(out, text, "{prompt:?} {output:?}");
    }
}

#[test]
fn special_tokens_are_left_out_unless_asked_for() {
    let model = testing::shipped();
    let tokens = model.encode("<|im_start|>user\nHi<tool_call><|im_end|>", false).unwrap();
    assert_eq!(stream(&model, &tokens, true), "user\nHi<tool_call>");
    assert_eq!(stream(&model, &tokens, false), "<|im_start|>user\nHi<tool_call><|im_end|>");
}

#[test]
fn a_clone_in_the_middle_goes_on_as_the_original_does() {
    let mut rng = Rng::new();
    for model in [testing::shipped(), spm(&PIECES, SPM_DECODER), spm(&PIECES, WORDPIECE_DECODER)] {
        for text in TORTURE {
            let tokens = model.encode(text, false).unwrap();
            let at = rng.below(tokens.len() + 1);
            let mut first = Detokenizer::new(&model, true);
            let mut out = String::new();
            tokens[..at].iter().for_each(|token| first.push(&model, *token, &mut out));
            let mut second = first.clone();
            tokens[at..].iter().for_each(|token| second.push(&model, *token, &mut out));
            second.finish(&model, &mut out);
            assert_eq!(out, stream(&model, &tokens, true), "{text:?} cut at {at}");
        }
    }
}
