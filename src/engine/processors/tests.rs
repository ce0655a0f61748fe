//! What processors promise.

use super::*;

fn wanted(name: &str, arguments: &str) -> Wanted {
    Wanted { name: name.to_owned(), arguments: arguments.to_owned() }
}

/// A byte is a token.
fn processors() -> Processors {
    Processors::new(|text| Ok(text.bytes().map(u32::from).collect()))
}

fn run(chain: &Chain, tokens: &[u32], prompt_len: usize, logits: &mut [f32]) -> Result<(), String> {
    let so_far = SoFar { beams: &[tokens], prompt_len, eos_ids: &[3] };
    chain.process(so_far, logits).map_err(|error| error.to_string())
}

/// The one token that is left.
fn left(logits: &[f32]) -> usize {
    let mut finite = (0..logits.len()).filter(|id| logits[*id].is_finite());
    let one = finite.next().unwrap();
    assert_eq!(finite.next(), None);
    one
}

#[test]
fn a_forced_text_is_said_from_the_end_of_the_prompt_and_then_the_end() {
    let chain = processors().chain(&[wanted("forced_text", r#"{"text":"ab"}"#)]).unwrap();
    let mut tokens = vec![7, 8, 9];
    for expected in [usize::from(b'a'), usize::from(b'b'), 3, 3] {
        let mut logits = vec![0.5; 128];
        run(&chain, &tokens, 3, &mut logits).unwrap();
        assert_eq!(left(&logits), expected);
        tokens.push(expected as u32);
    }
}

#[test]
fn each_beam_has_a_row_of_its_own() {
    let forced = ForcedText::new(vec![1, 2]);
    let beams: [&[u32]; 2] = [&[9], &[9, 1]];
    let mut logits = vec![0.0; 2 * 4];
    let so_far = SoFar { beams: &beams, prompt_len: 1, eos_ids: &[3] };
    forced.process(so_far, &mut logits).unwrap();
    assert_eq!((left(&logits[..4]), left(&logits[4..])), (1, 2));
}

#[test]
fn processors_run_in_their_order_and_those_that_are_always_on_first() {
    let always = [wanted("temperature", r#"{"value":2}"#)];
    let add = |_: &Map<String, Value>, _: &Encoder| {
        struct Add;
        impl LogitsProcessor for Add {
            fn process(&self, _: SoFar<'_>, logits: &mut [f32]) -> Result<(), String> {
                logits.iter_mut().for_each(|logit| *logit += 1.0);
                Ok(())
            }
        }
        Ok(Box::new(Add) as Box<dyn LogitsProcessor>)
    };
    let processors = processors().with("add", add).always(&always).unwrap();
    assert_ne!(processors.fingerprint(), Processors::default().fingerprint());
    let mut logits = [8.0, -4.0];
    run(&processors.chain(&[wanted("add", "{}")]).unwrap(), &[1], 1, &mut logits).unwrap();
    assert_eq!(logits, [5.0, -1.0]);
    assert!(Processors::default().chain(&[]).unwrap().is_empty());
}

#[test]
fn what_is_wrong_about_a_processor_is_said_by_its_name() {
    let cases = [
        (
            "nobody",
            "{}",
            "logits processor nobody: it is not known; there are forced_text, temperature",
        ),
        ("temperature", "{}", "logits processor temperature: it needs `value`, a number above 0"),
        (
            "temperature",
            r#"{"value":0}"#,
            "logits processor temperature: value = 0: must be a number above 0",
        ),
        (
            "temperature",
            r#"{"by":2}"#,
            "logits processor temperature: it has no argument `by`, only `value`",
        ),
        (
            "forced_text",
            r#"{"text":1}"#,
            "logits processor forced_text: text = 1: must be a string",
        ),
    ];
    for (name, arguments, expected) in cases {
        let error = processors().chain(&[wanted(name, arguments)]).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.reach(), crate::engine::Reach::Request);
    }
    assert!(processors().chain(&[wanted("temperature", "[")]).is_err());
    let chain = Processors::default().chain(&[wanted("forced_text", "{}")]);
    assert!(chain.unwrap_err().to_string().contains("no tokenizer"));
}

#[test]
fn a_panic_is_an_error_of_its_request() {
    struct Panics;
    impl LogitsProcessor for Panics {
        fn process(&self, _: SoFar<'_>, logits: &mut [f32]) -> Result<(), String> {
            logits[logits.len()] = 0.0;
            Ok(())
        }
    }
    let processors = processors().with("panics", |_, _| Ok(Box::new(Panics)));
    let chain = processors.chain(&[wanted("panics", "{}")]).unwrap();
    let error = run(&chain, &[1], 1, &mut [0.0]).unwrap_err();
    assert_eq!(error, "logits processor panics: it panicked");
}
