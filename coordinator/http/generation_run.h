// One completion or chat request from its body to the last byte of its answer. Private to coordinator/http.
#pragma once
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <string>

#include "coordinator/http/api_server.h"

namespace expertmesh {

// What every run needs; outlives them.
struct RunContext {
  ApiModel model;
  Generator& generator;
  Tokenizer const* tokenizer;
  ChatTemplates* templates;
  Metrics& metrics;
};

// Threads on which waiting is allowed. Joined in this order they have let go of every run, and the generator too.
struct RunThreads {
  boost::asio::thread_pool templates;  // render chats; a slow template holds up no prompt of plain text
  boost::asio::thread_pool text;       // encode prompts, decode answers
};

// Parses, renders, encodes and submits; then turns events into the answer, all one after the other.
void start_generation(RunContext const& context, RunThreads& threads, bool chat, HttpRequest request,
                      std::shared_ptr<HttpResponder> responder);

}  // namespace expertmesh
