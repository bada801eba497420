//! In which order a namespace that is being deleted is emptied: a pure function of what is in it.

use crate::controllers::gc::Object;

#[derive(Debug, PartialEq)]
pub enum Step {
    Delete(Vec<Object>),
    /// All that is left is on its way out already.
    Wait,
    /// Nothing is left, as far as is known: make sure, then let the namespace go.
    Finish,
}

/// Pods first: nothing must pull a volume, a secret or a policy from under a process that still
/// runs (KEP-5080, ordered namespace deletion). Then all else at once; owners and finalizers order that.
pub fn step(objects: Vec<Object>) -> Step {
    let is_pod = |object: &Object| object.kind.group.is_empty() && object.kind.plural == "pods";
    let (pods, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_pod);
    let next = if pods.is_empty() { others } else { pods };
    if next.is_empty() {
        return Step::Finish;
    }
    let fresh: Vec<_> = next.into_iter().filter(|object| !object.deleting).collect();
    if fresh.is_empty() { Step::Wait } else { Step::Delete(fresh) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::gc::KindName;
    use proptest::prelude::*;

    fn object(plural: &str, uid: usize) -> Object {
        Object {
            kind: KindName { group: String::new(), plural: plural.to_owned() },
            namespace: Some("a".into()),
            name: uid.to_string(),
            uid: uid.to_string(),
            version: "1".into(),
            owners: Vec::new(),
            finalizers: Vec::new(),
            deleting: false,
        }
    }

    proptest! {
        /// However slowly things go, pods are gone before anything else is deleted, and it ends.
        #[test]
        fn pods_go_first_and_then_all_else(kinds in proptest::collection::vec(0..3_usize, 0..12), slow: u8) {
            let plurals = ["pods", "secrets", "configmaps"];
            let mut left: Vec<_> =
                kinds.iter().enumerate().map(|(uid, kind)| object(plurals[*kind], uid)).collect();
            for round in 0..100_usize {
                match step(left.clone()) {
                    Step::Finish => {
                        prop_assert!(left.is_empty());
                        return Ok(());
                    }
                    Step::Delete(chosen) => {
                        prop_assert!(!chosen.is_empty());
                        let pods = left.iter().any(|object| object.kind.plural == "pods");
                        for object in chosen {
                            prop_assert!(!pods || object.kind.plural == "pods");
                            left.iter_mut().filter(|it| it.uid == object.uid).for_each(|it| it.deleting = true);
                        }
                    }
                    Step::Wait => {
                        let pick = (round + usize::from(slow)) % left.len();
                        let leaving = left.iter().cycle().skip(pick).find(|it| it.deleting).unwrap().uid.clone();
                        left.retain(|it| it.uid != leaving);
                    }
                }
            }
            prop_assert!(false, "it never ends");
        }
    }
}
