//! Several nodes in one file: which is meant, and what is wrong with all of them.

use expect_test::{Expect, expect};

use super::host;
use crate::config::read::{check, check_all, check_node};
use crate::config::{ConfigErrors, Problem, Profile};

const FILE: &str = "\
# three nodes
node: {name: front}
frontend:
---
node.name: 'w 1'
worker: {threads: 1}
---
worker: {threads: 2}
node:
  name: w2
";

fn text(problems: Vec<Problem>) -> String {
    ConfigErrors { file: Some("nodes.yaml".into()), problems }.to_string()
}

/// What is said about all nodes of a file.
fn says(file: &str, sets: &[&str], expected: Expect) {
    let sets: Vec<_> = sets.iter().map(ToString::to_string).collect();
    expected.assert_eq(&check_all(&host(), file, &sets).map_or_else(text, |all| {
        all.iter().map(|config| config.node.name.clone()).collect::<Vec<_>>().join(", ")
    }));
}

#[test]
fn each_document_is_a_node_that_is_chosen_by_its_name() {
    for (name, threads) in [("front", None), ("w 1", Some(1)), ("w2", Some(2))] {
        let config = check_node(&host(), FILE, Some(name), &[], Profile::Node).unwrap();
        assert_eq!(config.node.name, name);
        assert_eq!(config.frontend.is_some(), threads.is_none());
        assert_eq!(config.worker.map(|worker| worker.threads), threads);
    }
    says(FILE, &[], expect!["front, w 1, w2"]);
    says("", &["worker.threads=3"], expect!["here"]);
}

#[test]
fn a_name_may_be_said_of_a_file_of_one_node_too() {
    let named = |file: &str, name| check_node(&host(), file, Some(name), &[], Profile::Node);
    assert_eq!(named("---\nworker:\nnode: {name: a}\n", "a").unwrap().node.name, "a");
    let wrong = |file, name| text(named(file, name).unwrap_err());
    expect![[r#"
        nodes.yaml: 1 problem
          holds no node b, but a
        nodes.yaml: 1 problem
          names no node; leave out --node, or give it a node.name"#]]
    .assert_eq(&[wrong("node: {name: a}\nworker:", "b"), wrong("worker:", "a")].join("\n"));
}

#[test]
fn without_a_name_that_is_there_the_names_are_listed() {
    let choose = |name| text(check_node(&host(), FILE, name, &[], Profile::Node).unwrap_err());
    expect![[r#"
        nodes.yaml: 1 problem
          holds several nodes (front, w 1, w2); choose one: cuelight node --config FILE --node NAME
        nodes.yaml: 1 problem
          holds no node w1, but front, w 1, w2"#]]
    .assert_eq(&[choose(None), choose(Some("w1"))].join("\n"));
    let serve = check(&host(), FILE, &[], Profile::Serve).unwrap_err();
    assert_eq!(text(serve), choose(None));
}

#[test]
fn nodes_of_one_name_and_nodes_without_are_refused_with_their_lines() {
    let file = "\
node: {name: a}
worker:
---
worker:
---
# nothing
---
frontend:
node:
  name: a
---
node: {name: [a]}
worker:
--- 5
---
node: {name: &x a}
worker: *x
";
    says(
        file,
        &[],
        expect![[r#"
            nodes.yaml: 10 problems
              line 3: node.name: must be given: the file holds several nodes; give each node a name of its own
              line 5: node.name: must be given: the file holds several nodes; give each node a name of its own
              line 5: has neither `frontend` nor `worker`; add a section, may it be empty
              line 10: node.name = a: is there twice, first in line 1; give each node a name of its own
              line 12: node.name: must be text of 1 to 256 characters on one line, not a list
              line 14: node.name: must be given: the file holds several nodes; give each node a name of its own
              line 14: must be sections with keys, such as `frontend:` over `  http: …`
              line 14: has neither `frontend` nor `worker`; add a section, may it be empty
              line 16: node.name = a: is there twice, first in line 1; give each node a name of its own
              line 17: has an alias (*…); write the value out"#]],
    );
    let nameless = "node: {name: a}\nworker:\n---\nworker:";
    let one = check_node(&host(), nameless, Some("a"), &[], Profile::Node).unwrap_err();
    expect![[r#"
        nodes.yaml: 1 problem
          line 3: node.name: must be given: the file holds several nodes; give each node a name of its own"#]]
    .assert_eq(&text(one));
}

#[test]
fn problems_of_all_nodes_keep_their_lines_and_those_of_set_are_said_once() {
    let file = "\
node: {name: a}
worker:
  threads: 0
cluster: {cookie: env:COOKIE}
---
node: {name: b}
frontend: {htpp: x}
cluster: {}
---
node: {name: c}
";
    says(
        file,
        &["log.levle=debug"],
        expect![[r#"
            nodes.yaml: 5 problems
              line 3: worker.threads = 0: must be a whole number from 1 to 1024; leave it out to follow the number of cores
              line 5: cluster.cookie: must be given: a secret that all nodes share, env:NAME or file:PATH
              line 7: frontend.htpp: unknown key; did you mean frontend.http?
              line 9: has neither `frontend` nor `worker`; add a section, may it be empty
              --set: log.levle: unknown key; did you mean log.level?"#]],
    );
    // Another node's problems are not in the way of the one that is to run.
    let fixed = file.replace("threads: 0", "threads: 4");
    assert!(check_node(&host(), &fixed, Some("a"), &[], Profile::Node).is_ok());
    assert!(check_node(&host(), &fixed, Some("b"), &[], Profile::Node).is_err());
}

#[test]
fn a_file_that_is_no_yaml_is_refused_whichever_node_is_meant() {
    let file = format!("{FILE}---\nnode: {{name: x\n");
    says(
        &file,
        &[],
        expect![[r#"
            nodes.yaml: 1 problem
              line 13: is not YAML: while parsing a flow mapping, did not find expected ',' or '}'; see to its indentation, colons and quotes"#]],
    );
    let chosen = check_node(&host(), &file, Some("front"), &[], Profile::Node).unwrap_err();
    assert_eq!(chosen, check_all(&host(), &file, &[]).unwrap_err());
}
