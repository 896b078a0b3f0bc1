// One completion or chat request from its body to the last byte of its answer. Private to coordinator/http.
#pragma once
#include <boost/asio/any_io_executor.hpp>
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

// Parses, renders, encodes and submits; then turns events into the answer, all one after the other on `strand`, where
// waiting is allowed.
void start_generation(RunContext const& context, boost::asio::any_io_executor strand, bool chat, HttpRequest request,
                      std::shared_ptr<HttpResponder> responder);

}  // namespace expertmesh
