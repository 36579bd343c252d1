use std::sync::Arc;
use std::time::Duration;

use super::Metrics;

#[test]
fn what_is_counted_is_served() {
    let metrics = Metrics::new();
    metrics.invite(Some("acme"), "accepted");
    metrics.apns_response("production", 418, "other");
    metrics.stage("apns", Duration::from_millis(80));
    let text = metrics.render();
    assert!(text.contains(r#"ringcast_invites_total{app="acme",result="accepted"} 1"#), "{text}");
    assert!(text.contains(r#"status="other""#), "{text}");
    assert!(text.contains(r#"ringcast_stage_seconds_bucket{stage="apns",le="0.1"} 1"#), "{text}");
    assert!(text.contains("ringcast_build_info{version="), "{text}");
    assert!(text.contains("process_resident_memory_bytes"), "{text}");
}

/// Series that are kept, those of one made twice, and those that nothing is kept of.
#[test]
fn every_event_is_an_increase_of_one_in_its_own_series() {
    let metrics = Metrics::new();
    metrics.start_apps(["acme", "other"]);
    metrics.start_apps(["acme"]);
    for (app, result) in [
        (Some("acme"), "accepted"),
        (Some("acme"), "ended"),
        (Some("ghost"), "accepted"),
        (None, "malformed"),
    ] {
        metrics.invite(app, result);
    }
    for environment in ["production", "sandbox", "mars"] {
        metrics.device("acme", environment, "accepted");
        metrics.device("acme", environment, "ended");
        metrics.device("ghost", environment, "accepted");
        metrics.apns_response(environment, 200, "none");
        metrics.apns_response(environment, 410, "Unregistered");
    }
    metrics.apns_response("sandbox", 200, "none");
    for word in ["first", "ambiguous", "odd"] {
        metrics.attempt(word);
    }
    for stage in ["queue", "total", "odd"] {
        metrics.stage(stage, Duration::from_secs(1));
    }
    let text = metrics.render();
    let mut expected = vec![
        r#"ringcast_invites_total{app="acme",result="accepted"} 1"#.to_owned(),
        r#"ringcast_invites_total{app="acme",result="ended"} 1"#.to_owned(),
        r#"ringcast_invites_total{app="acme",result="expired"} 0"#.to_owned(),
        r#"ringcast_invites_total{app="other",result="accepted"} 0"#.to_owned(),
        r#"ringcast_invites_total{app="ghost",result="accepted"} 1"#.to_owned(),
        r#"ringcast_invites_total{app="unknown",result="malformed"} 1"#.to_owned(),
        r#"ringcast_devices_total{app="other",environment="sandbox",result="accepted"} 0"#.to_owned(),
        r#"ringcast_apns_responses_total{environment="production",reason="none",status="200"} 1"#.to_owned(),
        r#"ringcast_apns_responses_total{environment="sandbox",reason="none",status="200"} 2"#.to_owned(),
        r#"ringcast_apns_responses_total{environment="mars",reason="none",status="200"} 1"#.to_owned(),
        r#"ringcast_attempts_total{class="unprocessed"} 0"#.to_owned(),
    ];
    for environment in ["production", "sandbox", "mars"] {
        for (app, result) in [("acme", "accepted"), ("acme", "ended"), ("ghost", "accepted")] {
            expected.push(format!(
                r#"ringcast_devices_total{{app="{app}",environment="{environment}",result="{result}"}} 1"#
            ));
        }
        expected.push(format!(
            r#"ringcast_apns_responses_total{{environment="{environment}",reason="Unregistered",status="410"}} 1"#
        ));
    }
    for class in ["first", "ambiguous", "odd"] {
        expected.push(format!(r#"ringcast_attempts_total{{class="{class}"}} 1"#));
    }
    for stage in ["queue", "total", "odd"] {
        expected.push(format!(r#"ringcast_stage_seconds_count{{stage="{stage}"}} 1"#));
    }
    for line in expected {
        assert!(text.lines().any(|served| served == line), "{line}\n{text}");
    }
    let fresh = Metrics::new().render();
    assert!(!fresh.contains("ringcast_apns_responses_total{"), "{fresh}");
}

#[test]
fn a_refresher_runs_before_each_rendering() {
    let metrics = Metrics::new();
    let inner = Arc::downgrade(&metrics);
    metrics.refresh_with(move || {
        if let Some(metrics) = inner.upgrade() {
            metrics.apns_streams("production", 3, 1000);
        }
    });
    assert!(metrics.render().contains(r#"ringcast_apns_streams{environment="production",kind="used"} 3"#));
}
