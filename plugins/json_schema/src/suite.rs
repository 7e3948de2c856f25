//! The JSON Schema Test Suite: no schema that is taken may give another answer than the suite's. Its
//! files are not in this tree. From a checkout of `json-schema-org/JSON-Schema-Test-Suite`:
//! `JSON_SCHEMA_SUITE=.../tests cargo test -p json_schema suite -- --ignored --nocapture`

use std::{collections::BTreeMap, env, fs, path::Path};

use serde_json::Value;

use crate::schema::Schema;

const DRAFTS: [(&str, &str); 2] = [
    (
        "draft2020-12",
        "https://json-schema.org/draft/2020-12/schema",
    ),
    ("draft7", "http://json-schema.org/draft-07/schema#"),
];

#[test]
#[ignore = "needs the files of the suite"]
fn what_is_taken_is_answered_as_the_suite_says() {
    let tests = env::var("JSON_SCHEMA_SUITE").expect("the folder `tests` of the suite");
    let mut wrong = Vec::new();
    for (folder, uri) in DRAFTS {
        let mut tally = Tally::default();
        for file in fs::read_dir(Path::new(&tests).join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                tally.file(&path, uri);
            }
        }
        eprintln!("{folder}: {} right, refused schemas:", tally.n_right);
        for (refusal, (n_schemas, n_cases)) in tally.refused {
            eprintln!("  {n_schemas} ({n_cases} cases): {refusal}");
        }
        wrong.extend(tally.wrong);
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[derive(Default)]
struct Tally {
    n_right: usize,
    wrong: Vec<String>,
    /// How many schemas and how many of their cases, by what was said.
    refused: BTreeMap<String, (usize, usize)>,
}

impl Tally {
    fn file(&mut self, path: &Path, uri: &str) {
        let groups: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for group in groups {
            let cases = group["tests"].as_array().unwrap();
            let mut schema = group["schema"].clone();
            if let Value::Object(keywords) = &mut schema {
                keywords.entry("$schema").or_insert_with(|| uri.into());
            }
            let schema = match Schema::new(&schema) {
                Ok(schema) => schema,
                Err(refusal) => {
                    let entry = self.refused.entry(refusal).or_default();
                    *entry = (entry.0 + 1, entry.1 + cases.len());
                    continue;
                }
            };
            for case in cases {
                let is_valid = schema.validate(&case["data"], 80_000).is_ok();
                match is_valid == case["valid"] {
                    true => self.n_right += 1,
                    false => self.wrong.push(format!(
                        "{}: {}: {}",
                        path.display(),
                        group["description"],
                        case["description"]
                    )),
                }
            }
        }
    }
}
