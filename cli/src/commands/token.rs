//! `outrigger token`: the token alone on standard output, so that `$(outrigger token …)` works.

use std::time::Duration;

use outrigger_api::v1::CreateTokenRequest;
use outrigger_common::config::format_duration;
use serde_json::json;

use crate::admin::Admin;
use crate::args::{Output, TokenArgs};
use crate::failure::Failure;
use crate::output;

pub(super) async fn run(args: &TokenArgs) -> Result<(), Failure> {
    if args.ttl.is_some_and(|ttl| ttl < Duration::from_secs(1)) {
        return Err(Failure::usage("--ttl: use 1s or more"));
    }
    let admin = Admin::new(&args.connection.registry, &args.connection.identity)?;
    if let Some(id) = &args.revoke {
        admin.revoke_token(id).await?;
        match args.output {
            Output::Text => output::print_line(&format!("token/{id} revoked"))?,
            Output::Json => output::print_json(&json!({"id": id, "revoked": true}))?,
        }
        return Ok(());
    }
    let request = CreateTokenRequest {
        namespace: args.namespace.clone().unwrap_or_default(),
        account: args.account.clone().unwrap_or_default(),
        services: args.services.clone(),
        ttl_seconds: args.ttl.map_or(0, |ttl| ttl.as_secs()),
    };
    let token = admin.create_token(request).await?;
    match args.output {
        Output::Text => {
            output::print_line(&token.token)?;
            output::say(&allows(args, &token.id));
        }
        Output::Json => output::print_json(&json!({
            "token": token.token,
            "id": token.id,
            "expires": token.expires,
            "single_use": args.ttl.is_none(),
            "namespace": args.namespace,
            "account": args.account,
            "services": args.services,
        }))?,
    }
    Ok(())
}

/// What the token allows, in a sentence.
fn allows(args: &TokenArgs, id: &str) -> String {
    let [namespace, account] =
        [&args.namespace, &args.account].map(|text| text.as_deref().unwrap_or_default());
    let times = match args.ttl {
        None => "Once, within a day,".to_owned(),
        Some(ttl) => format!("For {}, any number of times,", format_duration(ttl)),
    };
    let services = match args.services.as_slice() {
        [] => "only call others".to_owned(),
        services => {
            let names: Vec<_> = services.iter().map(|service| format!("{service}.{namespace}")).collect();
            format!("serve {}", names.join(", "))
        }
    };
    format!(
        "{times} a sidecar may join with it as ns/{namespace}/sa/{account} and {services}. Revoke it with: outrigger token --revoke {id}"
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn parse(line: &str) -> Result<TokenArgs, clap::Error> {
        Args::try_parse_from(line.split_whitespace()).map(|args| match args.command {
            Command::Token(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_sentence_names_identity_services_and_times() {
        let args = parse("outrigger token --namespace shop --account orders --service orders --service pay")
            .unwrap();
        let text = allows(&args, "t1");
        for words in ["Once", "ns/shop/sa/orders", "serve orders.shop, pay.shop", "--revoke t1"] {
            assert!(text.contains(words), "{text}");
        }
        let args = parse("outrigger token -n shop --account web --ttl 90s").unwrap();
        assert!(allows(&args, "t1").contains("For 90s") && allows(&args, "t1").contains("only call others"));
    }

    #[test]
    fn a_token_needs_an_identity_and_a_revocation_only_an_id() {
        assert!(parse("outrigger token --namespace shop").is_err());
        assert!(parse("outrigger token --revoke t1").is_ok());
        assert!(parse("outrigger token --revoke t1 --account x").is_err());
    }
}
