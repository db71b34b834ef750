"""A training step in small, as StableHLO, for the tests of the TPU compiler and of the child that runs it."""

TOPOLOGY = "v5e:2x2"

# A donated state and a product, as a training step has them; mhlo.copy is what TensorFlow puts at a function's results.
STEP = """
module @a_inference_step_20__.31 attributes {mhlo.input_output_alias = [{alias = {kind = "may_alias",
    parameter_index = array<i64>, parameter_number = 0 : i64}, output_index = array<i64>}]} {
  func.func public @main(%arg0: tensor<512x512xf32>, %arg1: tensor<512x512xf32>) -> tensor<512x512xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0]
      : (tensor<512x512xf32>, tensor<512x512xf32>) -> tensor<512x512xf32> loc(#loc3)
    %1 = "mhlo.copy"(%0) : (tensor<512x512xf32>) -> tensor<512x512xf32>
    return %1 : tensor<512x512xf32>
  }
}
#loc1 = loc("model/dense/MatMul")
#loc2 = loc("/a/machine/ops.py":1221:0)
#loc3 = loc(fused[#loc1, #loc2])
"""
