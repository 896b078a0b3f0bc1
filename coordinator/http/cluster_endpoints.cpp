#include "coordinator/http/cluster_endpoints.h"

#include <limits>

#include "coordinator/http/api_json.h"
#include "coordinator/http/body_reader.h"

namespace expertmesh {
namespace {

constexpr std::int64_t kMostAtOnce = 64;

HttpResponse accepted(ApiJson const& json) {
  return {.status = 202, .body = json.dump(), .headers = {}};
}

HttpResponse conflict(std::string const& reason) {
  return error_response(
      {.status = 409, .message = reason, .param = {}, .code = "cluster_conflict", .retry_after_s = {}});
}

// A body may be left out; a field nobody knows is refused: these are few, and misspelt ones matter.
template <class Read>
HttpResponse answer(std::string const& body, Read read) {
  try {
    ApiJson const object = parse_body(body.empty() ? "{}" : body);
    BodyReader in(object);
    return read(in);
  } catch (BadRequest const& bad) {
    return error_response(bad.error);
  }
}

void refuse_unknown(BodyReader const& in) {
  for (auto const& field : in.unknown()) refuse_field(field, "is not known here");
}

}  // namespace

HttpResponse drain_worker(ClusterChanges const& changes, std::string const& body) {
  return answer(body, [&](BodyReader& in) {
    auto const worker = in.whole("worker", 1, std::numeric_limits<std::uint32_t>::max());
    refuse_unknown(in);
    if (!worker) refuse_field("worker", "is missing");
    if (auto const reason = changes.drain(static_cast<std::uint32_t>(*worker))) return conflict(*reason);
    return accepted({{"worker", *worker}, {"state", "draining"}});
  });
}

HttpResponse add_workers(ClusterChanges const& changes, std::string const& body) {
  return answer(body, [&](BodyReader& in) {
    std::int64_t const count = in.whole("count", 1, kMostAtOnce).value_or(1);
    refuse_unknown(in);
    for (std::int64_t i = 0; i < count; ++i)
      if (auto const reason = changes.add_worker()) return conflict(*reason);
    return accepted({{"count", count}, {"state", "joining"}});
  });
}

}  // namespace expertmesh
