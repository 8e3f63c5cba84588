//! Who may call a served port: the `AuthorizationPolicies` that govern it, compiled.
//!
//! The order is that of `AuthorizationPolicySpec`: a matching `Deny` refuses whatever else allows;
//! else, where there are policies of action `Allow`, one of them must match; else everybody may.

use outrigger_api::resource::ResourceName;
use outrigger_api::resource::attachment::{Attachment, PortSelector};
use outrigger_api::resource::authorization::{Action, AuthorizationPolicySpec, AuthorizationRule};
use outrigger_api::resource::policy::TargetRef;
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::ServiceName;

/// A served port, as policies name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port<'a> {
    /// As callers name it.
    pub number: u16,
    /// Its name in the `Service`, where it has one.
    pub name: Option<&'a str>,
}

/// Whether a caller may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may.
    Allow,
    /// It may not.
    Deny {
        /// The policy of action `Deny` that matches; `None` where policies of action `Allow` govern
        /// the port and none of them matches.
        policy: Option<&'a ResourceName>,
    },
}

/// The policies of one served port. Two that decide alike may differ in form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorization {
    deny: Vec<Compiled>,
    /// `None`: no policy of action `Allow` governs the port. Some of them may match nobody.
    allow: Option<Vec<Compiled>>,
}

/// A policy, reduced to the rules that can match on this port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Compiled {
    name: ResourceName,
    rules: Vec<Callers>,
}

/// Conditions on the caller that must all hold; `None` holds always.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Callers {
    identities: Option<Vec<Pattern>>,
    namespaces: Option<Vec<Box<str>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl Authorization {
    /// What `policies` say about `port` of `service`; those that govern other services or ports play
    /// no part, so all that are known may be given, in any order.
    pub fn compile<'p>(
        policies: impl Iterator<Item = (&'p ResourceName, &'p AuthorizationPolicySpec)>,
        service: &ServiceName,
        port: Port<'_>,
    ) -> Self {
        let mut compiled = Self::default();
        for (name, spec) in policies.filter(|(name, spec)| governs(name, spec, service, port)) {
            let rules = spec.rules.iter().filter(|rule| on_port(rule, port)).map(Callers::compile).collect();
            let policy = Compiled { name: name.clone(), rules };
            match spec.action {
                Action::Deny => compiled.deny.push(policy),
                Action::Allow => compiled.allow.get_or_insert_default().push(policy),
            }
        }
        compiled
    }

    /// Whether `caller` may call. Formats the caller's id once if there is any policy, so that the
    /// answer is worth keeping for the length of a connection or until the policies change.
    pub fn decide(&self, caller: &SpiffeId) -> Verdict<'_> {
        if self.is_open() {
            return Verdict::Allow;
        }
        let id = caller.is_proven().then(|| caller.to_string());
        let matching = |policy: &&Compiled| {
            policy.rules.iter().any(|rule| rule.matches(id.as_deref(), caller.namespace()))
        };
        if let Some(policy) = self.deny.iter().find(matching) {
            return Verdict::Deny { policy: Some(&policy.name) };
        }
        match &self.allow {
            Some(policies) if !policies.iter().any(|policy| matching(&policy)) => {
                Verdict::Deny { policy: None }
            }
            Some(_) | None => Verdict::Allow,
        }
    }

    /// Whether no policy governs the port: everybody of the mesh may call.
    pub fn is_open(&self) -> bool {
        self.deny.is_empty() && self.allow.is_none()
    }

    /// The policies that govern the port, those that deny first, for people.
    pub fn policies(&self) -> impl Iterator<Item = &ResourceName> {
        self.deny.iter().chain(self.allow.iter().flatten()).map(|policy| &policy.name)
    }
}

fn governs(
    name: &ResourceName,
    spec: &AuthorizationPolicySpec,
    service: &ServiceName,
    port: Port<'_>,
) -> bool {
    // A policy speaks for its own namespace only: nobody else can open or close a service.
    name.namespace == service.namespace()
        && (spec.target_refs.is_empty()
            || spec.target_refs.iter().any(|target| selects(target, service, port)))
}

fn selects(target: &TargetRef, service: &ServiceName, port: Port<'_>) -> bool {
    match target.attachment(service.namespace()) {
        Some(Attachment::Service { name, port: selected }) => {
            name == *service
                && selected.is_none_or(|selector| match selector {
                    PortSelector::Number(number) => number == port.number,
                    PortSelector::Name(name) => port.name == Some(&*name),
                })
        }
        Some(Attachment::Route { .. } | Attachment::Namespace(_)) | None => false,
    }
}

fn on_port(rule: &AuthorizationRule, port: Port<'_>) -> bool {
    rule.ports.is_empty() || rule.ports.contains(&port.number)
}

impl Callers {
    fn compile(rule: &AuthorizationRule) -> Self {
        let identities = (!rule.identities.is_empty())
            .then(|| rule.identities.iter().map(|text| Pattern::compile(text)).collect());
        let namespaces = (!rule.namespaces.is_empty())
            .then(|| rule.namespaces.iter().map(|name| name.as_str().into()).collect());
        Self { identities, namespaces }
    }

    /// Who has no identity matches no condition on it, `*` included.
    fn matches(&self, id: Option<&str>, namespace: Option<&str>) -> bool {
        let identified = self
            .identities
            .as_ref()
            .is_none_or(|patterns| id.is_some_and(|id| patterns.iter().any(|pattern| pattern.matches(id))));
        identified
            && self.namespaces.as_ref().is_none_or(|names| {
                namespace.is_some_and(|namespace| names.iter().any(|name| **name == *namespace))
            })
    }
}

impl Pattern {
    fn compile(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.into()),
            None => Self::Exact(text.into()),
        }
    }

    fn matches(&self, id: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *id,
            Self::Prefix(prefix) => id.starts_with(&**prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port<'static> = Port { number: 8080, name: Some("web") };

    fn id(namespace: &str, account: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://mesh.local/ns/{namespace}/sa/{account}")).unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn rule(identities: &[&str], namespaces: &[&str], ports: &[u16]) -> AuthorizationRule {
        AuthorizationRule {
            identities: texts(identities),
            namespaces: texts(namespaces),
            ports: ports.to_vec(),
        }
    }

    fn target(name: &str, section: Option<&str>) -> TargetRef {
        TargetRef {
            group: String::new(),
            kind: "Service".into(),
            name: name.into(),
            namespace: None,
            section_name: section.map(Into::into),
        }
    }

    type Policy = (ResourceName, AuthorizationPolicySpec);

    fn policy(name: &str, action: Action, targets: &[TargetRef], rules: &[AuthorizationRule]) -> Policy {
        let name = ResourceName { namespace: "shop".into(), name: name.into() };
        (name, AuthorizationPolicySpec { target_refs: targets.to_vec(), action, rules: rules.to_vec() })
    }

    fn compile(policies: &[Policy]) -> Authorization {
        let service = ServiceName::parse("orders.shop").unwrap();
        Authorization::compile(policies.iter().map(|(name, spec)| (name, spec)), &service, PORT)
    }

    fn allowed(policies: &[Policy], caller: &SpiffeId) -> bool {
        compile(policies).decide(caller) == Verdict::Allow
    }

    #[test]
    fn without_a_policy_everybody_may_call() {
        assert!(compile(&[]).is_open() && allowed(&[], &id("other", "x")));
        let trust_domain = id("a", "b").trust_domain().clone();
        assert!(allowed(&[], &SpiffeId::admin(trust_domain)));
    }

    #[test]
    fn deny_beats_allow() {
        let policies = [
            policy("all", Action::Allow, &[], &[rule(&[], &[], &[])]),
            policy("not-batch", Action::Deny, &[], &[rule(&[], &["batch"], &[])]),
        ];
        let compiled = compile(&policies);
        assert_eq!(compiled.decide(&id("web", "front")), Verdict::Allow);
        assert_eq!(compiled.decide(&id("batch", "job")), Verdict::Deny { policy: Some(&policies[1].0) });
        assert_eq!(compiled.policies().collect::<Vec<_>>(), [&policies[1].0, &policies[0].0]);
    }

    #[test]
    fn a_policy_without_rules_matches_nobody() {
        let closed = compile(&[policy("closed", Action::Allow, &[], &[])]);
        assert_eq!(closed.decide(&id("shop", "front")), Verdict::Deny { policy: None });
        assert!(!closed.is_open());
        assert!(allowed(&[policy("none", Action::Deny, &[], &[])], &id("shop", "front")));
    }

    #[test]
    fn deny_alone_leaves_the_rest_open() {
        let policies = [policy("deny", Action::Deny, &[], &[rule(&[], &["batch"], &[])])];
        assert!(allowed(&policies, &id("web", "front")) && !allowed(&policies, &id("batch", "front")));
    }

    #[test]
    fn identities_are_whole_or_end_in_a_star() {
        let may = |pattern: &str, caller: &SpiffeId| {
            allowed(&[policy("p", Action::Allow, &[], &[rule(&[pattern], &[], &[])])], caller)
        };
        let front = id("web", "front");
        for (pattern, matches) in [
            ("spiffe://mesh.local/ns/web/sa/front", true),
            ("spiffe://mesh.local/ns/web/sa/fron", false),
            ("spiffe://mesh.local/ns/web/sa/front-2", false),
            ("spiffe://mesh.local/ns/web/sa/*", true),
            ("spiffe://mesh.local/ns/we/sa/*", false),
            ("spiffe://mesh.local/ns/web/sa/front*", true),
            ("*", true),
            ("", false),
            ("spiffe://mesh.local/ns/*/sa/front", false),
            ("spiffe://other/ns/web/sa/front", false),
        ] {
            assert_eq!(may(pattern, &front), matches, "{pattern}");
        }
        assert!(may("spiffe://mesh.local/outrigger/*", &SpiffeId::admin(front.trust_domain().clone())));
    }

    #[test]
    fn who_proved_nothing_matches_no_condition_on_who_calls() {
        let nobody = SpiffeId::nobody(id("a", "b").trust_domain().clone());
        let may = |action: Action, identities: &[&str], namespaces: &[&str]| {
            allowed(&[policy("p", action, &[], &[rule(identities, namespaces, &[])])], &nobody)
        };
        assert!(allowed(&[], &nobody), "no policy: whoever gets here may call");
        assert!(!may(Action::Allow, &["*"], &[]) && !may(Action::Allow, &["spiffe://mesh.local/*"], &[]));
        assert!(!may(Action::Allow, &["spiffe://mesh.local/outrigger/nobody"], &[]));
        assert!(!may(Action::Allow, &[], &["shop"]));
        assert!(may(Action::Allow, &[], &[]), "a rule that asks for nothing");
        assert!(may(Action::Deny, &["*"], &[]) && !may(Action::Deny, &[], &[]));
    }

    #[test]
    fn conditions_of_a_rule_all_hold_and_rules_are_a_union() {
        let both = [policy(
            "p",
            Action::Allow,
            &[],
            &[
                rule(&["*/sa/none", "spiffe://mesh.local/ns/web/*"], &["web", "shop"], &[]),
                rule(&[], &["ops"], &[]),
            ],
        )];
        assert!(allowed(&both, &id("web", "a")) && allowed(&both, &id("ops", "a")));
        assert!(!allowed(&both, &id("shop", "a")), "the namespace holds, the identity does not");
        let admin = SpiffeId::admin(id("a", "b").trust_domain().clone());
        assert!(!allowed(&both, &admin), "who has no namespace is in none");
        let split = [
            policy("a", Action::Allow, &[], &[rule(&[], &["web"], &[])]),
            policy("b", Action::Allow, &[], &[rule(&[], &["ops"], &[])]),
        ];
        assert!(allowed(&split, &id("web", "a")) && allowed(&split, &id("ops", "a")));
        assert!(!allowed(&split, &id("shop", "a")), "the union of two policies is not everybody");
    }

    #[test]
    fn rules_for_other_ports_do_not_match_here() {
        let on = |ports: &[u16], action| [policy("p", action, &[], &[rule(&[], &["web"], ports)])];
        let web = id("web", "a");
        assert!(allowed(&on(&[8080], Action::Allow), &web) && allowed(&on(&[1, 8080], Action::Allow), &web));
        // The policy governs the service, so that the port it does not open is closed.
        assert!(!allowed(&on(&[9090], Action::Allow), &web));
        assert!(!allowed(&on(&[8080], Action::Deny), &web) && allowed(&on(&[9090], Action::Deny), &web));
    }

    #[test]
    fn targets_select_service_and_port() {
        let denies = |targets: &[TargetRef]| {
            !allowed(&[policy("p", Action::Deny, targets, &[rule(&[], &[], &[])])], &id("web", "a"))
        };
        assert!(denies(&[]), "no target: every service of the namespace");
        assert!(denies(&[target("orders", None)]));
        assert!(denies(&[target("orders", Some("web"))]) && denies(&[target("orders", Some("8080"))]));
        assert!(denies(&[target("stock", None), target("orders", None)]), "any one of them");
        assert!(!denies(&[target("stock", None)]));
        assert!(!denies(&[target("orders", Some("9090"))]) && !denies(&[target("orders", Some("grpc"))]));
        assert!(!denies(&[TargetRef { kind: "HTTPRoute".into(), ..target("orders", None) }]));
        assert!(!denies(&[TargetRef { namespace: Some("web".into()), ..target("orders", None) }]));
        assert!(denies(&[TargetRef { namespace: Some("shop".into()), ..target("orders", None) }]));
    }

    #[test]
    fn an_allow_policy_for_another_port_does_not_close_this_one() {
        let policies = [policy("p", Action::Allow, &[target("orders", Some("admin"))], &[])];
        assert!(compile(&policies).is_open());
    }

    #[test]
    fn policies_of_other_namespaces_say_nothing() {
        let (mut name, spec) = policy("p", Action::Deny, &[], &[rule(&[], &[], &[])]);
        name.namespace = "web".into();
        assert!(allowed(&[(name, spec)], &id("web", "a")));
    }
}
