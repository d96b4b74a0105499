//! `lab-app`: the applications of the lab's pods, and clients of the protocols that curl doesn't speak.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::apps::{self, database, ratings_grpc};
use serde_json::json;
use std::time::Duration;

#[derive(Parser, Debug)]
#[command(name = "lab-app", version, about = "The applications of the lab's pods")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serves as a pod's application.
    Serve {
        /// The pod's name, e.g. reviews-v2.
        role: String,
    },
    /// One gRPC call; prints the answer or the status as JSON.
    GrpcGet { address: String },
    /// A gRPC stream in both directions; prints how many answers came.
    GrpcWatch {
        address: String,
        #[arg(default_value_t = 10)]
        count: u32,
    },
    /// Sends one line over TCP and prints the answer.
    TcpAsk { address: String, line: Vec<String> },
    /// Sends lines on one TCP connection for a while; prints how many were answered, and the longest wait.
    TcpTalk { address: String, seconds: f64 },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse().command {
        Command::Serve { role } => apps::run(&role).await,
        Command::GrpcGet { address } => {
            let answer = match ratings_grpc::get(&address).await {
                Ok(response) => json!({ "code": "Ok", "stars": response.stars, "caller": response.caller }),
                Err(status) => json!({ "code": format!("{:?}", status.code()), "message": status.message() }),
            };
            println!("{answer}");
            Ok(())
        }
        Command::GrpcWatch { address, count } => {
            let answer = match ratings_grpc::watch(&address, count).await {
                Ok(received) => json!({ "code": "Ok", "received": received }),
                Err(status) => json!({ "code": format!("{:?}", status.code()), "message": status.message() }),
            };
            println!("{answer}");
            Ok(())
        }
        Command::TcpAsk { address, line } => {
            println!("{}", database::ask(&address, &line.join(" ")).await?);
            Ok(())
        }
        Command::TcpTalk { address, seconds } => {
            println!("{}", database::talk(&address, Duration::from_secs_f64(seconds)).await?);
            Ok(())
        }
    }
}
