//! What governs the calls of services: rows of routes and policies folded into parts, one for each
//! audience. Pure; a part of [`crate::state`].

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use outrigger_api::resource::Resource;
use outrigger_api::resource::attachment::Attachment;
use outrigger_api::v1;
use outrigger_common::name::ServiceName;

/// Parts without a row that are kept, so that a returning sidecar hears that there is nothing left.
const MAX_EMPTY: usize = 4096;

/// A part of what governs a service, and whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Routes and traffic policies of the service's own namespace: whoever calls or serves it.
    Producer(ServiceName),
    /// Those of another namespace: who calls the service from there.
    Consumer(ServiceName, String),
    /// Authorization policies of the service: who serves it.
    Authorization(ServiceName),
    /// Authorization policies of a whole namespace: who serves anything in it.
    Namespace(String),
}

/// For whom the set of a service is put together.
#[derive(Debug, Clone, Copy)]
pub struct Audience<'a> {
    /// Namespace of its identity.
    pub namespace: &'a str,
    /// Whether it serves the service, and must know who may call it.
    pub serves: bool,
}

/// Rows as sidecars hear of them.
pub type Set = Vec<Arc<v1::Resource>>;

#[derive(Debug)]
struct Part {
    changed: u64,
    rows: Set,
}

/// Everything that governs, at one position of the source.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    parts: Arc<HashMap<Scope, Arc<Part>>>,
    /// Up to this position a part that is not there may have lost its rows.
    forgotten: u64,
}

impl Policies {
    /// What governs a service for an audience, in the order of kind, namespace and name.
    pub fn of(&self, service: &ServiceName, audience: Audience<'_>) -> Set {
        let parts = scopes(service, audience);
        let mut set: Set = parts
            .iter()
            .filter_map(|scope| self.parts.get(scope))
            .flat_map(|part| part.rows.clone())
            .collect();
        set.sort_by(|a, b| place(a).cmp(&place(b)));
        set
    }

    /// Says that what was deleted up to a position is not known: the rows were read for the first time.
    pub fn forget_before(&mut self, position: u64) {
        self.forgotten = position;
    }

    /// Position of the last change of such a set, or later.
    pub fn changed(&self, service: &ServiceName, audience: Audience<'_>) -> u64 {
        let changed = |scope| self.parts.get(&scope).map_or(self.forgotten, |part| part.changed);
        scopes(service, audience).into_iter().map(changed).max().unwrap_or(self.forgotten)
    }
}

fn scopes(service: &ServiceName, audience: Audience<'_>) -> Vec<Scope> {
    let mut scopes = vec![Scope::Producer(service.clone())];
    if audience.namespace != service.namespace() {
        scopes.push(Scope::Consumer(service.clone(), audience.namespace.to_owned()));
    }
    if audience.serves {
        scopes.push(Scope::Authorization(service.clone()));
        scopes.push(Scope::Namespace(service.namespace().to_owned()));
    }
    scopes
}

fn place(row: &v1::Resource) -> (&str, &str, &str) {
    (&row.kind, &row.namespace, &row.name)
}

/// A row, by `<kind>/<namespace>/<name>`.
type Key = Arc<str>;

/// The rows, and what each of them governs.
#[derive(Debug, Default)]
pub struct Rows {
    rows: HashMap<Key, Row>,
    /// What is attached to the services themselves.
    attached: HashMap<Scope, BTreeSet<Key>>,
    /// What is attached to a route, whether that exists or not.
    on_routes: HashMap<Key, BTreeSet<Key>>,
    /// Parts to be put together again.
    touched: BTreeSet<Scope>,
}

#[derive(Debug)]
struct Row {
    sent: Arc<v1::Resource>,
    scopes: BTreeSet<Scope>,
    routes: BTreeSet<Key>,
}

impl Rows {
    /// Starts over, with every part of `before` to be looked at again.
    pub fn after(before: &Policies) -> Self {
        Self { touched: before.parts.keys().cloned().collect(), ..Self::default() }
    }

    /// Adds or replaces a row.
    pub fn put(&mut self, resource: &Resource, sent: v1::Resource) {
        let key: Key = format!("{}/{}/{}", sent.kind, sent.namespace, sent.name).into();
        self.delete(&key);
        let mut row = Row { sent: Arc::new(sent), scopes: BTreeSet::new(), routes: BTreeSet::new() };
        for attachment in resource.attachments() {
            match attachment {
                Attachment::Service { name, .. } => _ = row.scopes.insert(scope(resource, name)),
                Attachment::Namespace(namespace) => _ = row.scopes.insert(Scope::Namespace(namespace)),
                Attachment::Route { kind, namespace, name, .. } => {
                    row.routes.insert(format!("{}/{namespace}/{name}", kind.as_str()).into());
                }
            }
        }
        for scope in &row.scopes {
            self.attached.entry(scope.clone()).or_default().insert(key.clone());
        }
        for route in &row.routes {
            self.on_routes.entry(route.clone()).or_default().insert(key.clone());
        }
        self.touch(&row);
        self.rows.insert(key, row);
    }

    /// Removes a row, by `<kind>/<namespace>/<name>`.
    pub fn delete(&mut self, key: &str) {
        let Some(row) = self.rows.remove(key) else { return };
        self.touch(&row);
        row.scopes.iter().for_each(|scope| detach(&mut self.attached, scope, key));
        row.routes.iter().for_each(|route| detach(&mut self.on_routes, route, key));
    }

    fn touch(&mut self, row: &Row) {
        let routes = row.routes.iter().filter_map(|route| self.rows.get(route));
        let scopes = routes.flat_map(|route| &route.scopes).chain(&row.scopes).cloned();
        self.touched.extend(scopes.collect::<Vec<_>>());
    }

    /// The parts after `before`, and which of them are not as they were.
    pub fn finish(&mut self, position: u64, before: &Policies) -> (Policies, BTreeSet<Scope>) {
        let (mut next, mut changed) = (before.clone(), BTreeSet::new());
        for scope in std::mem::take(&mut self.touched) {
            let rows = self.collect(&scope);
            let same = match before.parts.get(&scope) {
                Some(part) => part.rows == rows,
                None => rows.is_empty(),
            };
            if !same {
                let part = Arc::new(Part { changed: position, rows });
                Arc::make_mut(&mut next.parts).insert(scope.clone(), part);
                changed.insert(scope);
            }
        }
        if !changed.is_empty() && next.parts.values().filter(|part| part.rows.is_empty()).count() > MAX_EMPTY
        {
            Arc::make_mut(&mut next.parts).retain(|_, part| !part.rows.is_empty());
            next.forgotten = position;
        }
        (next, changed)
    }

    fn collect(&self, scope: &Scope) -> Set {
        let mut keys = BTreeSet::new();
        for key in self.attached.get(scope).into_iter().flatten() {
            keys.insert(key);
            keys.extend(self.on_routes.get(key).into_iter().flatten());
        }
        keys.into_iter().filter_map(|key| self.rows.get(key)).map(|row| row.sent.clone()).collect()
    }
}

/// The part a resource attached to a service belongs to.
fn scope(resource: &Resource, service: ServiceName) -> Scope {
    if matches!(resource, Resource::AuthorizationPolicy { .. }) {
        Scope::Authorization(service)
    } else if resource.namespace() == service.namespace() {
        Scope::Producer(service)
    } else {
        Scope::Consumer(service, resource.namespace().to_owned())
    }
}

fn detach<K: Hash + Eq>(index: &mut HashMap<K, BTreeSet<Key>>, place: &K, key: &str) {
    if let Some(keys) = index.get_mut(place) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::document::parse_yaml;

    use super::*;

    fn policy(n: usize) -> (Resource, v1::Resource) {
        let yaml = format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: s{n}}}], retries: {{attempts: 1}}}}\n"
        );
        let resource = parse_yaml("mesh.yaml".as_ref(), &yaml).unwrap().remove(0);
        let sent = v1::Resource {
            kind: resource.kind().into(),
            namespace: "shop".into(),
            name: resource.name().into(),
            ..Default::default()
        };
        (resource, sent)
    }

    #[test]
    fn deletions_are_remembered_up_to_a_bound_and_then_count_as_changes_of_everything() {
        let (mut rows, mut policies) = (Rows::default(), Policies::default());
        let service = |n: usize| ServiceName::new("shop", &format!("s{n}")).unwrap();
        let audience = Audience { namespace: "shop", serves: false };
        let mut position = 0;
        for n in 0..=MAX_EMPTY {
            let (resource, sent) = policy(n);
            rows.put(&resource, sent);
            position += 1;
            policies = rows.finish(position, &policies).0;
            assert_eq!(policies.of(&service(n), audience).len(), 1);
            rows.delete(&format!("TrafficPolicy/shop/p{n}"));
            position += 1;
            let (next, changed) = rows.finish(position, &policies);
            assert_eq!(changed, [Scope::Producer(service(n))].into());
            policies = next;
            if n == 0 {
                assert_eq!((policies.changed(&service(0), audience), position), (2, 2));
            }
            if n + 1 == MAX_EMPTY {
                assert_eq!(policies.parts.len(), MAX_EMPTY, "up to the bound each is known");
                assert_eq!(policies.changed(&service(0), audience), 2);
            }
        }
        assert_eq!(policies.parts.len(), 0);
        for name in [service(0), service(MAX_EMPTY), service(MAX_EMPTY + 9)] {
            assert_eq!(policies.changed(&name, audience), position);
        }
        assert!(rows.attached.is_empty() && rows.rows.is_empty());
    }
}
