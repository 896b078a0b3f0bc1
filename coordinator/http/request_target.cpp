#include "coordinator/http/request_target.h"

#include <algorithm>
#include <charconv>

namespace expertmesh {
namespace {

// "%2F" -> "/". A malformed escape stays as it is.
std::string percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    char const* const end = text.data() + std::min(i + 3, text.size());
    if (text[i] == '%' && end - text.data() == static_cast<std::ptrdiff_t>(i + 3) &&
        std::from_chars(text.data() + i + 1, end, byte, 16).ptr == end) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

std::string path_of(std::string_view target) {
  if (target.starts_with("http://") || target.starts_with("https://")) {  // as proxies send it
    target.remove_prefix(target.find("//") + 2);
    target.remove_prefix(std::min(target.find('/'), target.size()));
  }
  std::string path;
  for (char c : target.substr(0, target.find_first_of("?#")))
    if (c != '/' || path.empty() || path.back() != '/') path += c;
  if (path.size() > 1 && path.back() == '/') path.pop_back();
  return percent_decoded(path);
}

std::optional<std::string> query_value(std::string_view target, std::string_view name) {
  target = target.substr(0, target.find('#'));
  std::size_t const question = target.find('?');
  if (question == std::string_view::npos) return std::nullopt;
  std::string_view query = target.substr(question + 1);
  while (!query.empty()) {
    std::string_view const parameter = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(parameter.size() + 1, query.size()));
    std::size_t const equals = parameter.find('=');
    if (parameter.substr(0, equals) != name) continue;
    return std::string(equals == std::string_view::npos ? "" : parameter.substr(equals + 1));
  }
  return std::nullopt;
}

}  // namespace expertmesh
