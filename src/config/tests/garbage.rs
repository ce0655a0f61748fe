//! Random text is never a panic, and never a configuration by accident.

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};

use crate::config::host::Host;
use crate::config::read::{Profile, check, check_all};
use crate::config::schema::keys;

fn host() -> Host {
    Host { env: |_| None, cores: 1, name: "h".into(), models: Vec::new() }
}

/// Pieces of YAML and of our keys, so that random text gets past the first character.
fn piece() -> impl Strategy<Value = String> {
    let marks = [
        ":",
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "'",
        "\"",
        "#",
        "&a ",
        "*a",
        "!!int ",
        "|\n",
        ">-\n",
        "? ",
        "---\n",
        "...\n",
        "~",
        "\t",
        "\\",
        "%YAML 1.2\n",
        "<<",
        "0x",
        "\u{feff}",
        "\u{0}",
        "é",
        "\u{2028}",
        "1",
        "-1",
        "1e999",
        ".inf",
        "true",
        "env:A",
        "sha256:",
    ];
    let words: Vec<String> =
        keys().flat_map(|key| key.name.split('.')).map(str::to_owned).collect();
    let dotted: Vec<String> = keys().map(|key| format!("{}: ", key.name)).collect();
    prop_oneof![
        4 => proptest::sample::select(marks.to_vec()).prop_map(str::to_owned),
        2 => proptest::sample::select(words),
        2 => proptest::sample::select(dotted),
        1 => any::<String>(),
    ]
}

#[test]
fn random_text_never_panics() {
    // A failure prints the text itself and the seed that repeats the run.
    let text = proptest::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat());
    let sets = proptest::collection::vec(piece(), 0..3);
    let mut runner = TestRunner::new(Runs { failure_persistence: None, ..Runs::with_cases(4000) });
    runner
        .run(&(text, sets), |(text, sets)| {
            let set = sets.concat();
            let sets = std::slice::from_ref(&set);
            for checked in [
                check(&host(), &text, sets, Profile::Serve).map(|_| ()),
                check(&host(), &text, sets, Profile::Node).map(|_| ()),
                check_all(&host(), &text, sets).map(|_| ()),
            ] {
                if let Err(problems) = checked {
                    prop_assert!(!problems.is_empty());
                    for problem in problems {
                        prop_assert!(!problem.to_string().contains('\n'), "{}", problem);
                    }
                }
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}\n{runner}"));
}
