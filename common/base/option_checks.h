// What command lines need that CLI11 does not have.
#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <utility>
#include <vector>

namespace expertmesh {

// Like CLI::Range, which lets NaN pass.
inline CLI::Validator range_of_numbers(double low, double high) {
  std::string const range = "[" + CLI::detail::to_string(low) + " - " + CLI::detail::to_string(high) + "]";
  return {[low, high, range](std::string& text) -> std::string {
            double number = 0;
            if (CLI::detail::lexical_cast(text, number) && low <= number && number <= high) return {};
            return "Value " + text + " not in range " + range;
          },
          "FLOAT in " + range};
}

// An option that is one of these names, nothing else.
template <class T>
CLI::Option* add_choice(CLI::App& command, std::string const& name, T& value,
                        std::vector<std::pair<std::string, T>> const& choices, std::string const& description) {
  std::vector<std::string> names;
  for (auto const& [text, unused] : choices) names.push_back(text);
  auto const choose = [&value, choices](std::string const& text) {
    for (auto const& [choice, meant] : choices)
      if (choice == text) value = meant;
  };
  return command.add_option_function<std::string>(name, choose, description)->check(CLI::IsMember(names));
}

}  // namespace expertmesh
