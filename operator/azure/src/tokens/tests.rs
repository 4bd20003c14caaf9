use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::*;
use crate::stub::{Answers, Hands, answer};

const HOUR: Duration = Duration::from_hours(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Issues `token-1`, `token-2`, … each good for an hour, or what `issue` says for the n-th.
fn source(
    hands: &Hands,
    issue: impl Fn(usize) -> Result<(), AzureError> + Clone + Send + Sync + 'static,
) -> (TokenSource, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let issuer = move || {
        let (counter, issue) = (counter.clone(), issue.clone());
        async move {
            let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
            sleep(Duration::from_secs(3)).await;
            issue(number)?;
            Ok(Issued { secret: Secret::new(format!("token-{number}")), life: HOUR })
        }
        .boxed()
    };
    (TokenSource::new(Box::new(issuer), hands.clock()), asked)
}

fn outage() -> AzureError {
    AzureError::new(Class::Transient, "ConnectionFailed", "no route")
}

#[tokio::test(start_paused = true)]
async fn a_hundred_askers_make_one_request() {
    let hands = Hands::set();
    let (tokens, asked) = source(&hands, |_| Ok(()));
    let all = join_all((0..100).map(|_| tokens.token())).await;
    assert!(all.iter().all(|token| token.as_ref().unwrap().expose() == "token-1"));
    // … nor do a hundred whose request fails ask a hundred times.
    let (tokens, failed) = source(&hands, |_| Err(outage()));
    let all = join_all((0..100).map(|_| tokens.token())).await;
    assert!(all.iter().all(|token| token.as_ref().unwrap_err().code == "ConnectionFailed"));
    assert_eq!((asked.load(Ordering::SeqCst), failed.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_while_a_token_is_renewed() {
    let hands = Hands::set();
    let (tokens, asked) = source(&hands, |_| Ok(()));
    tokens.token().await.unwrap();
    hands.forward(29 * MINUTE);
    tokens.token().await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1, "it was renewed too early");

    hands.forward(2 * MINUTE);
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(tokens.token().await.unwrap().expose(), "token-1");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "somebody waited");
    sleep(MINUTE).await;
    assert_eq!(tokens.token().await.unwrap().expose(), "token-2");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "several renewed it at once");
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_rest_of_a_tokens_life_is_not_felt() {
    let hands = Hands::set();
    let (tokens, asked) =
        source(&hands, |number| if (2..40).contains(&number) { Err(outage()) } else { Ok(()) });
    tokens.token().await.unwrap();
    hands.forward(30 * MINUTE);
    for second in 0..29 * 60 {
        assert_eq!(tokens.token().await.unwrap().expose(), "token-1", "after {second} s of the outage");
        sleep(Duration::from_secs(1)).await;
        hands.forward(Duration::from_secs(1));
    }
    let during = asked.load(Ordering::SeqCst) - 1;
    assert!((20..40).contains(&during), "{during} requests in 29 minutes of an outage");

    // Then it is over: no token that Azure would refuse is given out.
    hands.forward(MINUTE);
    assert_eq!(tokens.token().await.unwrap_err().code, "ConnectionFailed");
    let mut waited = 0;
    while tokens.token().await.is_err() {
        hands.forward(Duration::from_secs(1));
        waited += 1;
        assert!(waited < 3_600, "it never came back");
    }
    assert!(asked.load(Ordering::SeqCst) >= 40);
}

#[tokio::test(start_paused = true)]
async fn azures_word_on_when_to_ask_again_is_kept() {
    let hands = Hands::set();
    let throttled = || {
        let mut error = AzureError::new(Class::Throttled, "SignInThrottled", "wait");
        error.retry_after = Some(2 * MINUTE);
        error
    };
    let (tokens, asked) = source(&hands, move |number| if number == 1 { Err(throttled()) } else { Ok(()) });
    for _ in 0..119 {
        assert_eq!(tokens.token().await.unwrap_err().class, Class::Throttled);
        hands.forward(Duration::from_secs(1));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    hands.forward(Duration::from_secs(1));
    assert_eq!(tokens.token().await.unwrap().expose(), "token-2");
}

/// The metadata service gives out one token until shortly before its end.
#[tokio::test(start_paused = true)]
async fn a_token_that_stays_the_same_is_not_asked_for_again_and_again() {
    let hands = Hands::set();
    let (asked, clock) = (Arc::new(AtomicUsize::new(0)), hands.clock());
    let end = clock() + SignedDuration::from_hours(1);
    let counter = asked.clone();
    let issuer = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        let life = Duration::try_from(end.duration_since(clock())).unwrap_or_default();
        async move { Ok(Issued { secret: Secret::new("the same"), life }) }.boxed()
    };
    let tokens = TokenSource::new(Box::new(issuer), hands.clock());
    for _ in 0..59 * 60 {
        tokens.token().await.unwrap();
        hands.forward(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert!((3..=12).contains(&asked.load(Ordering::SeqCst)), "{asked:?}");
}

fn to_put(url: &str) -> Request<Bytes> {
    Request::put(url).body(Bytes::from_static(b"{\"count\":3}")).unwrap()
}

fn bearer(request: &Request<Bytes>) -> Option<&str> {
    Some(request.headers().get(AUTHORIZATION)?.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_and_the_request_sent_once_more() {
    let hands = Hands::set();
    let (tokens, issued) = source(&hands, |_| Ok(()));
    let azure = Answers::by(|request| {
        Ok(answer(if bearer(request) == Some("Bearer token-1") { 401 } else { 200 }, "{}"))
    });
    let endpoint = "https://management.azure.com/".parse().unwrap();
    let authorized = Authorized::new(azure.clone(), &endpoint, Some(tokens)).unwrap();
    let url = "https://management.azure.com/subscriptions/s/x?api-version=1";

    // A token that was just issued is not followed by a better one: the refusal is the answer.
    assert_eq!(authorized.execute(to_put(url)).await.unwrap().status(), 401);
    assert_eq!((azure.asked().len(), issued.load(Ordering::SeqCst)), (1, 1));

    hands.forward(2 * MINUTE);
    assert_eq!(authorized.execute(to_put(url)).await.unwrap().status(), 200);
    let asked = azure.asked();
    assert_eq!((asked.len(), issued.load(Ordering::SeqCst)), (3, 2));
    assert_eq!(bearer(&asked[2]), Some("Bearer token-2"));
    assert_eq!(
        (asked[2].method(), asked[2].uri(), asked[2].body()),
        (asked[0].method(), asked[0].uri(), asked[0].body())
    );
    assert!(asked.iter().all(|request| request.headers()[AUTHORIZATION].is_sensitive()));
    assert!(!format!("{authorized:?} {:?}", asked[2]).contains("token-2"));
}

#[tokio::test(start_paused = true)]
async fn a_second_refusal_is_the_answer() {
    let hands = Hands::set();
    let (tokens, issued) = source(&hands, |_| Ok(()));
    let azure = Answers::by(|_| Ok(answer(401, "{}")));
    let endpoint = "https://management.azure.com/".parse().unwrap();
    let authorized = Authorized::new(azure.clone(), &endpoint, Some(tokens)).unwrap();
    for _ in 0..30 {
        hands.forward(2 * MINUTE);
        let answer = authorized.execute(to_put("https://management.azure.com/x")).await.unwrap();
        assert_eq!(answer.status(), 401);
    }
    // One token more for each request that is refused, never a loop.
    assert!(issued.load(Ordering::SeqCst) <= 31 && azure.asked().len() <= 60);
}

#[tokio::test(start_paused = true)]
async fn a_token_goes_to_azure_and_nowhere_else() {
    let hands = Hands::set();
    let azure = Answers::by(|_| Ok(answer(200, "{}")));
    let endpoint: Url = "https://management.azure.com/".parse().unwrap();
    let signed = Authorized::new(azure.clone(), &endpoint, Some(source(&hands, |_| Ok(())).0)).unwrap();
    for url in [
        "https://prices.azure.com/api/retail/prices",
        "http://management.azure.com/x",
        "https://management.azure.com:8443/x",
        "https://management.azure.com.example.org/x",
        "https://management.azure.com@example.org/x",
        "https://169.254.169.254/x",
    ] {
        let error = signed.execute(Request::get(url).body(Bytes::new()).unwrap()).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.class), ("InvalidRequest", Class::Invalid), "{url}");
    }
    assert!(azure.asked().is_empty());
    signed.execute(to_put("https://management.azure.com:443/x")).await.unwrap();
    assert_eq!(bearer(&azure.asked()[0]), Some("Bearer token-1"));

    let unsigned = Authorized::new(azure.clone(), &endpoint, None).unwrap();
    unsigned.execute(to_put("https://management.azure.com/x")).await.unwrap();
    assert_eq!(bearer(&azure.asked()[1]), None);

    for (endpoint, fine) in [
        ("http://management.azure.com/", false),
        ("http://10.0.0.4:8080/", false),
        ("http://127.0.0.1:8080/", true),
        ("http://localhost:8080/", true),
        ("http://[::1]:8080/", true),
    ] {
        let tokens = Some(source(&hands, |_| Ok(())).0);
        let authorized = Authorized::new(azure.clone(), &endpoint.parse().unwrap(), tokens);
        assert_eq!(authorized.is_ok(), fine, "{endpoint}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_token_nothing_is_sent() {
    let hands = Hands::set();
    let (tokens, _) =
        source(&hands, |_| Err(AzureError::new(Class::Denied, "NoFederatedCredential", "none")));
    let azure = Answers::by(|_| Ok(answer(200, "{}")));
    let endpoint = "https://management.azure.com/".parse().unwrap();
    let authorized = Authorized::new(azure.clone(), &endpoint, Some(tokens)).unwrap();
    let error = authorized.execute(to_put("https://management.azure.com/x")).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Denied, "NoFederatedCredential"));
    assert!(azure.asked().is_empty());
}
