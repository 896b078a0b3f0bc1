#include "common/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <cstdlib>

#include "common/base/error.h"

namespace expertmesh {

void init_log(std::string const& process) {
  auto logger = spdlog::stderr_color_mt(process);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ [%n] %v");
  if (char const* wanted = std::getenv("EXPERTMESH_LOG_LEVEL")) {
    std::string const name = wanted;
    auto const level = spdlog::level::from_str(name);
    if (level == spdlog::level::off && name != "off")
      throw ModelError("EXPERTMESH_LOG_LEVEL: unknown level '" + name + "' (trace, debug, info, warn, error, off)");
    logger->set_level(level);
  }
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace expertmesh
