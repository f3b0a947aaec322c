//! How much of the runtime's own memory an instance takes, told from its file.
//!
//! A container's limit counts linear memories and tables. Each core instance also has a record in the host: a place for every global
//! and for every function that may be called from outside. A module of a million of them, instantiated some hundred times by a
//! component, would take gigabytes that no limit counts, so such a file is refused when it is compiled.

use wasmparser::{BinaryReaderError, ComponentInstance, Encoding, Instance, Parser, Payload};

/// What an instance may take beside its memories. The largest components of the usual tools take a few megabytes.
pub(super) const HOST_BYTES_MAX: u64 = 64 << 20;

/// Of a function: two entries, its type and its instance.
const FUNCTION_BYTES: u64 = 32;
const GLOBAL_BYTES: u64 = 16;
/// Of a table, a memory or a tag.
const OTHER_BYTES: u64 = 16;

/// A module or component that is being read.
struct Level {
    encoding: Encoding,
    /// Of a module: what one instance takes.
    bytes: u64,
    /// Of a component: core instances that it makes, those of components in it included.
    instances: u64,
    /// The most core instances that one of the components in it makes.
    nested_max: u64,
}

/// At most so many bytes of the host for one instance: all core instances counted as the largest one.
pub(super) fn host_bytes(wasm: &[u8]) -> Result<u64, BinaryReaderError> {
    let mut levels: Vec<Level> = Vec::new();
    let (mut largest, mut instances) = (0, 0);
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        if let Payload::Version { encoding, .. } = payload {
            levels.push(Level {
                encoding,
                bytes: 0,
                instances: 0,
                nested_max: 0,
            });
            continue;
        }
        if let Payload::End(_) = payload {
            let Some(done) = levels.pop() else { continue };
            largest = largest.max(done.bytes);
            instances = match done.encoding {
                Encoding::Module => 1,
                Encoding::Component => done.instances,
            };
            if let (Some(around), Encoding::Component) = (levels.last_mut(), done.encoding) {
                around.nested_max = around.nested_max.max(done.instances);
            }
            continue;
        }
        if let Some(level) = levels.last_mut() {
            count(level, payload)?;
        }
    }
    Ok(largest.saturating_mul(instances))
}

fn count(level: &mut Level, payload: Payload<'_>) -> Result<(), BinaryReaderError> {
    let (count, each) = match payload {
        Payload::ImportSection(section) => (section.count(), FUNCTION_BYTES),
        Payload::FunctionSection(section) => (section.count(), FUNCTION_BYTES),
        Payload::GlobalSection(section) => (section.count(), GLOBAL_BYTES),
        Payload::TableSection(section) => (section.count(), OTHER_BYTES),
        Payload::MemorySection(section) => (section.count(), OTHER_BYTES),
        Payload::TagSection(section) => (section.count(), OTHER_BYTES),
        Payload::InstanceSection(section) => {
            for instance in section {
                if let Instance::Instantiate { .. } = instance? {
                    level.instances = level.instances.saturating_add(1);
                }
            }
            (0, 0)
        }
        Payload::ComponentInstanceSection(section) => {
            for instance in section {
                if let ComponentInstance::Instantiate { .. } = instance? {
                    // Which one it is may be hidden behind aliases; the largest is taken for it.
                    level.instances = level.instances.saturating_add(level.nested_max);
                }
            }
            (0, 0)
        }
        _ => (0, 0),
    };
    level.bytes = level.bytes.saturating_add(u64::from(count) * each);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_counted_through_components() {
        let weigh = |text: &str| host_bytes(&wat::parse_str(text).unwrap()).unwrap();
        let module = "(core module $m (global i32 (i32.const 0)) (func) (func))";
        let cases = [
            ("a module", "(module (global i32 (i32.const 0)) (func) (func))".to_owned(), 80),
            ("none is made", format!("(component {module})"), 0),
            (
                "two",
                format!("(component {module} (core instance (instantiate $m)) (core instance (instantiate $m)))"),
                160,
            ),
            (
                "a component of two, three times",
                format!(
                    "(component (component $c {module} (core instance (instantiate $m)) (core instance (instantiate $m)))
                        (instance (instantiate $c)) (instance (instantiate $c)) (instance (instantiate $c)))"
                ),
                480,
            ),
        ];
        for (name, text, expected) in cases {
            assert_eq!(weigh(&text), expected, "case: {name}");
        }
    }

    #[test]
    fn multiplied_components_are_over_the_limit() {
        // Each doubles the one before, sixteen times: 65,536 instances of a module of 2,000 globals.
        let globals = "(global i32 (i32.const 0))".repeat(2000);
        let mut text =
            format!("(component $c0 (core module $m {globals}) (core instance (instantiate $m)))");
        for depth in 1..=16 {
            let inner = depth - 1;
            text = format!(
                "(component $c{depth} {text} (instance (instantiate $c{inner})) (instance (instantiate $c{inner})))"
            );
        }
        assert!(host_bytes(&wat::parse_str(&text).unwrap()).unwrap() > HOST_BYTES_MAX);
    }
}
