//! `cuelight check`: everything that is wrong with a configuration, at once.

use std::io::Write;

use super::{CheckArgs, USAGE};
use crate::config::{self, Profile};

/// Checks a configuration, or prints the reference of all keys. Returns the exit code: 0, or
/// [`USAGE`] with the list of problems on `err`.
pub fn check(args: &CheckArgs, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    // A reader that went away, as in `cuelight check | head`, is no fault of the configuration.
    if args.reference {
        let _ = out.write_all(config::reference().as_bytes());
        return 0;
    }
    let checked = match (&args.config, &args.node) {
        (None, _) => config::load(None, &args.set, Profile::Serve).map(|_| ()),
        (Some(file), None) => config::load_all(file, &args.set).map(|_| ()),
        (Some(file), Some(name)) => config::load_node(file, name, &args.set).map(|_| ()),
    };
    match checked {
        Ok(()) => {
            let what = args.config.as_deref().map(|file| file.display().to_string());
            let _ = writeln!(out, "{}: ok", what.as_deref().unwrap_or("configuration"));
            0
        }
        Err(errors) => {
            let _ = writeln!(err, "{errors}");
            USAGE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(config: Option<&str>, set: &[&str], reference: bool) -> (u8, String, String) {
        let set = set.iter().map(|set| (*set).to_owned()).collect();
        let args = CheckArgs { config: config.map(Into::into), node: None, set, reference };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = check(&args, &mut out, &mut err);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn good_configurations_end_with_zero_and_bad_ones_with_64() {
        let ok = |out: &str| (0, out.to_owned(), String::new());
        assert_eq!(run(None, &[], false), ok("configuration: ok\n"));
        assert_eq!(run(Some("configs/sim.yaml"), &[], false), ok("configs/sim.yaml: ok\n"));
        let (code, out, err) = run(Some("configs/sim.yaml"), &["a=1", "b=2"], false);
        assert_eq!((code, out.as_str()), (USAGE, ""));
        assert!(err.starts_with("configs/sim.yaml: 2 problems\n  --set: a: unknown key"), "{err}");
    }

    #[test]
    fn all_nodes_of_a_file_are_checked_or_one_of_them() {
        let file = std::env::temp_dir().join(format!("cuelight-nodes-{}", std::process::id()));
        let text = "node: {name: a}\nfrontend:\n---\nnode: {name: b}\nworker: {threads: 0}\n";
        std::fs::write(&file, text).unwrap();
        let check = |node: Option<&str>| {
            let node = node.map(str::to_owned);
            let config = Some(file.clone());
            let args = CheckArgs { config, node, set: Vec::new(), reference: false };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = super::check(&args, &mut out, &mut err);
            (code, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
        };
        for (node, code, said) in [
            (Some("a"), 0, ": ok\n"),
            (Some("b"), USAGE, "1 problem\n  line 5: worker.threads = 0: "),
            (None, USAGE, "1 problem\n  line 5: worker.threads = 0: "),
            (Some("c"), USAGE, "holds no node c, but a, b\n"),
        ] {
            let answer = check(node);
            assert!(answer.0 == code && answer.1.contains(said), "{node:?}: {answer:?}");
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn the_reference_has_every_section() {
        let (code, out, err) = run(None, &[], true);
        assert_eq!((code, err.as_str()), (0, ""));
        for section in ["node", "log", "frontend", "worker", "supervision", "faults"] {
            assert!(out.contains(&format!("### `{section}`")), "{section}");
        }
    }
}
