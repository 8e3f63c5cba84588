//! Who serves and who calls what. Pure.
//!
//! Services are spread over namespaces of at most 100, since a join token names 256 services at most.
//! A sidecar serves services of its own namespace and calls services of all of them; the first
//! service is called by everyone.

/// Most services of one namespace.
const NAMESPACE: usize = 100;

/// The shape of a fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Simulated sidecars.
    pub(super) sidecars: usize,
    /// Services in all.
    pub(super) services: usize,
    /// Endpoints in all: workload times port.
    pub(super) endpoints: usize,
    /// Services each sidecar watches.
    pub(super) watch: usize,
}

impl Plan {
    /// Returns the plan if it can be carried out.
    ///
    /// # Errors
    /// What is too many or too few of something.
    pub(super) fn check(self) -> anyhow::Result<Self> {
        anyhow::ensure!(self.sidecars >= 1 && self.services >= 1, "use at least one sidecar and one service");
        anyhow::ensure!(
            (1..=self.services).contains(&self.watch),
            "--watch: use 1 to {}, the number of services",
            self.services
        );
        let most = self.endpoints.div_ceil(self.sidecars);
        let smallest = self.services - (self.namespaces() - 1) * NAMESPACE;
        anyhow::ensure!(
            most <= smallest.min(256),
            "--endpoints: {most} a sidecar are more than the {} services it can serve",
            smallest.min(256)
        );
        Ok(self)
    }

    /// Returns how many namespaces there are.
    pub(super) fn namespaces(&self) -> usize {
        self.services.div_ceil(NAMESPACE)
    }

    /// Returns the namespace of a sidecar.
    pub(super) fn namespace_of(&self, sidecar: usize) -> usize {
        sidecar % self.namespaces()
    }

    /// Returns the services of a namespace.
    pub(super) fn services_of(&self, namespace: usize) -> std::ops::Range<usize> {
        let first = namespace * NAMESPACE;
        first..(first + NAMESPACE).min(self.services)
    }

    /// Returns the services a sidecar serves.
    pub(super) fn serves(&self, sidecar: usize) -> impl Iterator<Item = usize> {
        let spare = usize::from(sidecar < self.endpoints % self.sidecars);
        let count = self.endpoints / self.sidecars + spare;
        let services = self.services_of(self.namespace_of(sidecar));
        let turn = sidecar / self.namespaces();
        (0..count).map(move |n| services.start + (turn * count + n) % services.len())
    }

    /// Returns the services a sidecar calls, the first service first.
    pub(super) fn watches(&self, sidecar: usize) -> impl Iterator<Item = usize> {
        let (others, more) = (self.services - 1, self.watch - 1);
        std::iter::once(0).chain((0..more).map(move |n| 1 + (sidecar * more + n) % others))
    }

    /// Returns how many endpoints each service has once everyone is registered.
    pub(super) fn endpoints_by_service(&self) -> Vec<u32> {
        let mut counts = vec![0; self.services];
        (0..self.sidecars).flat_map(|sidecar| self.serves(sidecar)).for_each(|service| counts[service] += 1);
        counts
    }

    /// Returns how many sidecars watch a service.
    pub(super) fn watchers(&self, service: usize) -> usize {
        (0..self.sidecars).filter(|sidecar| self.watches(*sidecar).any(|watched| watched == service)).count()
    }
}

/// Returns the name of a namespace.
pub(super) fn namespace(number: usize) -> String {
    format!("ns{number}")
}

/// Returns the label of a service.
pub(super) fn label(service: usize) -> String {
    format!("svc{service}")
}

/// Returns the full name of a service.
pub(super) fn name(service: usize) -> String {
    format!("{}.{}", label(service), namespace(service / NAMESPACE))
}

/// Returns the service of a full name.
pub(super) fn number(name: &str) -> Option<usize> {
    name.strip_prefix("svc")?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sidecar_watches_distinct_services_and_all_endpoints_are_there() {
        for (sidecars, services, endpoints, watch) in
            [(10_000, 1000, 100_000, 20), (200, 150, 1000, 5), (3, 1, 2, 1), (50, 20, 500, 20)]
        {
            let plan = Plan { sidecars, services, endpoints, watch }.check().unwrap();
            assert_eq!(plan.endpoints_by_service().iter().sum::<u32>() as usize, endpoints);
            for sidecar in 0..sidecars {
                let watched: std::collections::HashSet<_> = plan.watches(sidecar).collect();
                assert_eq!(watched.len(), watch);
                let served: Vec<_> = plan.serves(sidecar).collect();
                let distinct: std::collections::HashSet<_> = served.iter().collect();
                assert_eq!(distinct.len(), served.len());
                let own = plan.services_of(plan.namespace_of(sidecar));
                assert!(served.iter().all(|service| own.contains(service)));
            }
            assert_eq!(plan.watchers(0), sidecars);
        }
        assert!(Plan { sidecars: 10, services: 10, endpoints: 1000, watch: 5 }.check().is_err());
    }

    #[test]
    fn names_are_read_back() {
        assert_eq!((name(123).as_str(), number(&name(123))), ("svc123.ns1", Some(123)));
        assert_eq!(number("probe"), None);
    }
}
