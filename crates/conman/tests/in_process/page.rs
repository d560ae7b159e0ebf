//! The console's page: there with its policy, or a word on how to get it.

use crate::fleet::{Fleet, request, text};

#[tokio::test]
async fn the_page_is_of_the_apis_origin_alone_and_may_load_nothing_else() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let answer = fleet.request(request("GET", "localhost", "/", "")).await;
    let headers = answer.headers().clone();
    let status = answer.status().as_u16();
    let body = text(answer).await;
    if status == 404 {
        // A build without node: everything but the page is the same.
        assert!(body.contains("`make console` builds the page"), "{body}");
    } else {
        assert_eq!(status, 200);
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("script-src 'self';"), "{policy}");
        assert!(
            !body.contains("http://") && !body.contains("https://"),
            "{body}"
        );
        assert!(body.contains("<script type=\"module\" src=\"/console.js\"></script>"));
    }
    // At a repl's name there is the repl, whatever the path: the page is not to be had there.
    let answer = fleet
        .request(request("GET", "blue.localhost", "/console.js", ""))
        .await;
    assert!(!answer.headers().contains_key("content-security-policy"));
}
