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
