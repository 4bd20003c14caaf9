//! Prices, eviction rates, placement scores and instances against the simulator's services.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_azure::{
    ComputeInstances, EvictionBand, EvictionRates, HttpOptions, HttpsTransport, Instances, PlacementScore,
    PlacementScores, PowerState, Prices, Priority, ResourceGraph, RetailPrices, SpotPlacementScores,
    Transport, VmId,
};
use spotpool_azure_sim::api::{self, Identity, PoolSpec, Settings, State, VmPhase};
use spotpool_azure_sim::client::SimClient;
use spotpool_azure_sim::market::{Pages, ScoreChange};
use spotpool_azure_sim::server::{Options, Server};
use spotpool_azure_sim::switches::Switches;
use url::Url;

const SIZE: &str = "Standard_D4s_v5";
const OTHER: &str = "Standard_F8s_v2";

struct World {
    _server: Server,
    client: SimClient,
    transport: Arc<dyn Transport>,
    endpoint: Url,
    identity: Identity,
}

impl World {
    async fn start() -> Self {
        let pools = vec![PoolSpec::spot("spota", SIZE, 2)];
        let settings = Settings {
            kill_after: Duration::from_secs(1),
            switches: Switches { simulated_notice: Duration::from_secs(1), ..Switches::default() },
            ..Settings::default()
        };
        let server = Server::start(Options { pools, settings, ..Options::default() }).await.unwrap();
        let client = server.client().unwrap();
        // Pages so small that nothing is whole on the first.
        client.set_pages(&Pages { prices: 2, graph: 1 }).await.unwrap();
        Self {
            client,
            transport: Arc::new(HttpsTransport::new(HttpOptions::new("spotpool-test/1")).unwrap()),
            endpoint: server.url().parse().unwrap(),
            identity: Identity::default(),
            _server: server,
        }
    }

    fn prices(&self) -> RetailPrices {
        let endpoint = self.endpoint.join("/api/retail/prices").unwrap();
        RetailPrices::new(
            self.transport.clone(),
            endpoint,
            &self.identity.location,
            "USD",
            Arc::new(Timestamp::now),
        )
        .unwrap()
    }

    fn graph(&self) -> ResourceGraph {
        let Identity { subscription, location, .. } = &self.identity;
        ResourceGraph::new(
            self.transport.clone(),
            &self.endpoint,
            subscription,
            location,
            Arc::new(Timestamp::now),
        )
        .unwrap()
    }

    fn scores(&self) -> SpotPlacementScores {
        let Identity { subscription, location, .. } = &self.identity;
        let (transport, endpoint) = (self.transport.clone(), &self.endpoint);
        SpotPlacementScores::new(transport, endpoint, subscription, location, Arc::new(Timestamp::now))
            .unwrap()
    }

    fn instances(&self) -> ComputeInstances {
        ComputeInstances::new(self.transport.clone(), self.endpoint.clone(), Arc::new(|| true)).unwrap()
    }
}

fn sizes() -> Vec<String> {
    vec![SIZE.to_owned(), OTHER.to_owned()]
}

#[tokio::test]
async fn prices_are_those_of_linux_in_the_region() {
    let world = World::start().await;
    world.client.set_price(SIZE, api::Priority::Spot, Some("0.0517")).await.unwrap();
    world.client.set_price(OTHER, api::Priority::Spot, None).await.unwrap();
    let prices = world.prices();
    prices.refresh(&sizes()).await.unwrap();
    let hourly = |size, priority| prices.price(size, priority, None).map(|price| price.hourly.to_string());
    assert_eq!(hourly(SIZE, Priority::Spot).as_deref(), Some("0.0517"));
    assert_eq!(hourly(SIZE, Priority::Regular).as_deref(), Some("0.192"));
    assert_eq!(hourly(OTHER, Priority::Regular).as_deref(), Some("0.338"));
    assert_eq!(hourly(OTHER, Priority::Spot), None, "a price of what is not on offer");
}

#[tokio::test]
async fn bands_and_histories_are_read_page_by_page() {
    let world = World::start().await;
    world.client.set_eviction_rate(SIZE, Some("15-20")).await.unwrap();
    world.client.set_price(SIZE, api::Priority::Spot, Some("0.0517")).await.unwrap();
    let graph = world.graph();
    graph.refresh(&sizes()).await.unwrap();
    assert_eq!(graph.band(SIZE).unwrap().value, EvictionBand::UpTo20);
    assert_eq!(graph.band(OTHER).unwrap().value, EvictionBand::Above20);
    let history = graph.price_history(SIZE).unwrap().value;
    assert_eq!((history.newest.to_string(), history.prices), ("0.0517".to_owned(), 2), "{history:?}");
    assert_eq!((history.lowest.to_string(), history.highest), ("0.0422".to_owned(), history.newest));
    assert_eq!(history.before, Some(history.lowest), "what it cost before");
}

/// 15 requests in 5 s are all that Azure allows.
#[tokio::test]
async fn resource_graph_is_never_asked_more_than_it_allows() {
    let world = World::start().await;
    // One row a page: 9 sizes need 18 requests and more.
    let many: Vec<String> = [
        "D2s_v3", "D2s_v5", "D4s_v5", "D8s_v5", "D16s_v5", "D4as_v5", "D8as_v5", "D8ds_v5", "E8s_v5",
        "F8s_v2",
    ]
    .map(|name| format!("Standard_{name}"))
    .into();
    let graph = world.graph();
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    while many.iter().any(|size| graph.price_history(size).is_none()) {
        graph.refresh(&many).await.unwrap();
        assert!(tokio::time::Instant::now() < deadline, "it was never done");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(many.iter().all(|size| graph.band(size).is_some()));
}

#[tokio::test]
async fn placement_scores_are_read_where_the_role_is() {
    let world = World::start().await;
    let change = |zone: Option<&str>, score: &str| ScoreChange {
        vm_size: SIZE.into(),
        region: None,
        zone: zone.map(str::to_owned),
        score: score.into(),
        quota_available: true,
    };
    for change in [change(None, "Low"), change(Some("2"), "High"), change(Some("3"), "DataNotFoundOrStale")] {
        world.client.set_placement_score(&change).await.unwrap();
    }
    let scores = world.scores();
    scores.refresh(&sizes(), 2).await.unwrap();
    let placements = scores.placements(SIZE).unwrap().value;
    assert_eq!(placements["1"].score, PlacementScore::Low);
    assert_eq!(placements["2"].score, PlacementScore::High);
    assert!(!placements.contains_key("3"), "{placements:?}");
}

#[tokio::test]
async fn an_evicted_vm_is_seen_to_be_gone() {
    let world = World::start().await;
    let instances = world.instances();
    let running = |state: &State| state.vms.iter().all(|vm| vm.phase == VmPhase::Running);
    let state = world.client.wait_until("both run", Duration::from_mins(2), running).await.unwrap();
    let vm: VmId = state.vms[0].provider_id.parse().unwrap();
    let found = instances.instance(&vm).await.unwrap().unwrap();
    assert_eq!((found.power, found.provisioning_state.as_str()), (PowerState::Running, "Succeeded"));
    assert_eq!(found.instance_id.as_deref(), Some(vm.vm()));
    assert_eq!(instances.scale_set_of(&vm).await.unwrap().len(), 2);

    instances.simulate_eviction(&vm).await.unwrap();
    let gone = |state: &State| state.vms[0].phase == VmPhase::Gone;
    world.client.wait_until("one is gone", Duration::from_mins(2), gone).await.unwrap();
    assert_eq!(instances.instance(&vm).await.unwrap(), None);
    assert_eq!(instances.scale_set_of(&vm).await.unwrap().len(), 1);
}
