#include "coordinator/http/cors.h"

namespace expertmesh {

std::vector<std::pair<std::string, std::string>> cors_headers(std::optional<std::string> const& allowed_origin) {
  if (!allowed_origin) return {};
  std::vector<std::pair<std::string, std::string>> headers = {
      {"Access-Control-Allow-Origin", *allowed_origin},
      {"Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS"},
      {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id, *"},
      {"Access-Control-Expose-Headers", "X-Request-Id, Retry-After, X-ExpertMesh-Coordinator"},
      {"Access-Control-Max-Age", "600"}};
  if (*allowed_origin != "*") headers.emplace_back("Vary", "Origin");
  return headers;
}

}  // namespace expertmesh
