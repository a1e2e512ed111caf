// A controller that `lib.bundle.export` wrote, run without Python: plays the decisions of one episode.
//
//   controller build/my-controller/exported given.pt actions.pt
//
// given.pt is a list that torch.save wrote: observations (T, 1, obs_dim), then what the solve needs as random numbers,
// each (T, …), in the order of export.json. On a robot the former come from its sensors and the latter from
// at::randn(shape); actions.pt, the actions (T, 1, A), would go to its motors. How this is built stands in
// tests/bundle/test_export.py.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

using Tensors = std::vector<at::Tensor>;
using Package = torch::inductor::AOTIModelPackageLoader;

Tensors read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto list = torch::jit::pickle_load(bytes);
  Tensors tensors;
  for (const auto& value : list.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

void write(const std::string& path, const at::Tensor& tensor) {
  const auto bytes = torch::jit::pickle_save(tensor);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: controller EXPORTED given.pt actions.pt\n";
    return 2;
  }
  const std::string folder = arguments[1], plans = folder + "/solve.pt2";
  Package step(folder + "/step.pt2");
  const auto solve = std::filesystem::exists(plans) ? std::make_unique<Package>(plans) : nullptr;
  const Tensors given = read(arguments[2]);
  Tensors state = read(folder + "/start.pt"), actions;
  for (int64_t t = 0; t < given[0].size(0); ++t) {
    Tensors inputs{given[0][t]};
    inputs.insert(inputs.end(), state.begin(), state.end());
    Tensors outputs = step.run(inputs);  // action, asks, sound, the next state
    if (outputs[1].item<bool>()) {
      for (size_t i = 1; i < given.size(); ++i) inputs.push_back(given[i][t]);
      outputs = solve->run(inputs);
    }
    if (!outputs[2].item<bool>()) {
      std::cerr << "decision " << t << " has no finite action\n";
      return 1;
    }
    actions.push_back(outputs[0]);
    state.assign(outputs.begin() + 3, outputs.end());
  }
  write(arguments[3], at::stack(actions));
}
