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

// Parses, renders, encodes and submits; then turns events into the answer, all one after the other on `threads`, where
// waiting is allowed. threads.join() waits until the generator has let go of every run.
void start_generation(RunContext const& context, boost::asio::thread_pool& threads, bool chat, HttpRequest request,
                      std::shared_ptr<HttpResponder> responder);

}  // namespace expertmesh
